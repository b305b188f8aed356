"""`python -m vrpo.check FILE`."""

import json

import pytest
from conftest import tiny_model

from llada.data.tokenizer import byte_tokenizer
from vrpo.check import main

PAIRS = [{"prompt": "q" * (i + 1), "chosen": "aa", "rejected": "b"} for i in range(10)]


def checked(capsys, tmp_path, rows: list[dict], *options: str) -> tuple[int, str]:
    """The exit status and what is printed."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "rows.jsonl"), *options])
    return stopped.value.code, capsys.readouterr().out.replace(f"{tmp_path}/", "")


def test_a_clean_file(capsys, tmp_path):
    status, text = checked(capsys, tmp_path, PAIRS)
    assert status == 0
    assert text == (
        "rows.jsonl: 10 rows, preference pairs\n"
        "Tokens (one for each byte, because no --model is given):\n"
        "                median       90%       99%   longest\n"
        "  prompt             6        10        10        10\n"
        "  chosen             2         2         2         2\n"
        "  rejected           1         1         1         1\n"
        "Recommendation: Train on them as they are. The longest row needs max_length=13, an EOS included\n"
    )


def test_a_flawed_file(capsys, tmp_path):
    rows = [*PAIRS, {"prompt": "q", "chosen": "a", "rejected": ""}, {"prompt": "q", "chosen": "a", "rejected": "a"}]
    status, text = checked(capsys, tmp_path, rows, "--max_length", "12")
    assert status == 1
    assert "rows.jsonl: 3 of 12 rows cannot be trained on:\n  1 row is longer than 11 tokens" in text
    assert "1 row has an empty 'rejected': row 10 (counted from 0)" in text
    assert "1 row has identical 'chosen' and 'rejected'" in text


@pytest.mark.parametrize(
    ("rows", "kind", "part"),
    [
        ([{"prompt": "q", "completion": "abc"}], "prompt and completion", "completion         3"),
        (
            [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}],
            "messages",
            "prompt",
        ),
        ([{"text": "abc"}], "documents", "text               4"),
    ],
)
def test_the_format_is_found(capsys, tmp_path, rows, kind, part):
    status, text = checked(capsys, tmp_path, rows)
    assert status == 0
    assert text.startswith(f"rows.jsonl: 1 rows, {kind}\n")
    assert f"  {part}" in text


def test_a_model_gives_its_tokens_and_its_context(capsys, tmp_path):
    ids = dict(vocab_size=262, mask_token_id=258, eos_token_id=257, pad_token_id=257, eot_token_id=261)
    tiny_model(max_sequence_length=12, n_layers=1, **ids).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    status, text = checked(capsys, tmp_path, PAIRS, "--model", str(tmp_path / "model"))
    assert status == 1
    assert "Tokens (of model):" in text
    assert "1 row is longer than 11 tokens (max_length=12 less an EOS tail of 1): row 9" in text


def test_what_cannot_be_checked_has_status_2(capsys, tmp_path):
    assert checked(capsys, tmp_path, [{"a": 1}]) == (2, "")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "absent.jsonl")])
    assert stopped.value.code == 2
    assert "no such data file" in capsys.readouterr().err
