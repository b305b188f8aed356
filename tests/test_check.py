"""`python -m vrpo.check FILE`."""

import json

import pytest
from conftest import tiny_model

from llada.data.loading import load_rows
from llada.data.tokenizer import byte_tokenizer
from llada.errors import DataError
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


@pytest.mark.parametrize(
    ("value", "flaw"),
    [
        (
            42,
            "1 row has a number in 'chosen', where text or a list of messages belongs: row 3 (counted from 0); row 3: ",
        ),
        ({"text": "4"}, "1 row has a dictionary in 'chosen', where text or a list of messages belongs: row 3 "),
        (["a", "list"], "1 row has something else than text or a list of messages in 'chosen': row 3 "),
        ([], "1 row has an empty 'chosen': row 3 "),
    ],
)
@pytest.mark.parametrize("prompt", [{"prompt": "q"}, {}], ids=["prompt", "implicit prompt"])
def test_one_cell_of_another_type_spoils_no_other_row(capsys, tmp_path, value, flaw, prompt):
    """`datasets` read the texts of digits beside it as numbers, and all rows were reported."""
    rows = [prompt | {"chosen": f"{index}1", "rejected": f"{index}2"} for index in range(6)]
    rows[3]["chosen"] = value
    status, text = checked(capsys, tmp_path, rows)
    assert status == 1
    assert f"rows.jsonl: 1 of 6 rows cannot be trained on:\n  {flaw}" in text


def said_of(capsys, path) -> str:
    """What is printed on a file that cannot be checked."""
    with pytest.raises(SystemExit) as stopped:
        main([str(path)])
    assert stopped.value.code == 2
    return capsys.readouterr().err.replace(f"{path.parent}/", "")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', "a.jsonl: line 3 is not JSON: Expecting value (column 9)\n"),
        ("a.json", b'[{"text": "a"},\n{"text" 1}]', "a.json: line 2 is not JSON: Expecting ':' delimiter (column 9)\n"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', 'a.jsonl: line 2 is no object of columns and values: ["b"]\n'),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl is not UTF-8 text: "),
        ("a.jsonl", b"", "a.jsonl: the file has no rows\n"),
        ("a.jsonl", b"\n\n", "a.jsonl: the file has no rows\n"),
        ("a.json", b"[]", "a.json: the file has no rows\n"),
        ("a.csv", b"", "a.csv: the file has no rows\n"),
        ("a.csv", b"text,b\n1,2\n1,2,3\n", "a.csv cannot be read as .csv: Error tokenizing data. C error: Expected 2 "),
        ("a.parquet", b"no", "a.parquet cannot be read as .parquet: Parquet file size is 2 bytes"),
        ("a.txt", b"\xff", "a.txt is not UTF-8 text: line 1 has the byte 0xff at its byte 1"),
    ],
)
def test_a_broken_file_is_named_with_its_line(capsys, tmp_path, name, content, message):
    """They ended in a traceback of `datasets`, an empty one in a bare StopIteration."""
    (tmp_path / name).write_bytes(content)
    assert message in said_of(capsys, tmp_path / name)
    if b'"\xff"' not in content:  # in a stream it is met when its row is read
        with pytest.raises(DataError):
            load_rows(str(tmp_path / name), streaming=True)


def test_a_missing_side_of_pairs_is_named(capsys, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "chosen": "a"}\n')
    assert said_of(capsys, tmp_path / "a.jsonl").startswith(
        "a.jsonl: columns are ['chosen', 'prompt']; 'rejected' is missing; needed are 'prompt', 'chosen' and 'rejected'"
    )


def test_prompts_are_checked_as_prompts(capsys, tmp_path):
    """They were refused as training data without a completion."""
    rows = [{"prompt": "abc", "answer": "1"}, {"prompt": "", "answer": "2"}, {"prompt": 5}, {"prompt": "<|mdm_mask|>"}]
    status, text = checked(capsys, tmp_path, rows)
    assert status == 1
    assert text.startswith(
        "rows.jsonl: 4 rows, prompts\nrows.jsonl: 3 of 4 rows cannot be answered:\n"
        "  1 row has an empty 'prompt': row 1 (counted from 0)\n"
        "  1 row has a number in 'prompt', where text or a list of messages belongs: row 2 (counted from 0); "
        "row 2: found 5\n  1 row has text in 'prompt' that spells the mask token: row 3 (counted from 0)\n"
    )
    assert "the longest has 3 tokens" in text
    assert checked(capsys, tmp_path, rows[:1])[0] == 0
    status, text = checked(capsys, tmp_path, rows[:1], "--max_length", "3")
    assert (status, "1 row has a prompt that leaves no room for an answer in 3 tokens" in text) == (1, True)
