import json
import re

import pytest
import torch
from datasets import Dataset

from llada.data.collator import Collator
from llada.data.formats import prepare_rows
from llada.data.loading import load_rows
from llada.data.packing import token_bytes
from llada.data.tokenizer import byte_tokenizer, special_ids
from llada.errors import DataError

TOKENIZER = byte_tokenizer()
IDS = special_ids(TOKENIZER)
EOS = IDS.eos


def pairs(*rows: tuple[str, str]) -> Dataset:
    return Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in rows])


def chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)]


def test_example_ids_survive_shuffling_and_filtering_and_tell_rows_apart():
    rows = prepare_rows(pairs(("q", "a"), ("qa", "b"), ("q", "ab"), ("q", "a")), TOKENIZER, IDS, 64)
    ids = rows["example_id"]
    assert ids[0] == ids[3]
    assert len(set(ids)) == 3
    other = prepare_rows(pairs(("q", "ab"), ("q", "a")), TOKENIZER, IDS, 64)
    assert other["example_id"] == [ids[2], ids[0]]
    assert (
        prepare_rows(pairs(("qa", "b")), TOKENIZER, IDS, 64)["example_id"]
        != prepare_rows(pairs(("q", "ab")), TOKENIZER, IDS, 64)["example_id"]
    )


def test_documents_are_concatenated_with_eos_and_nothing_is_lost():
    rows = prepare_rows(Dataset.from_dict({"text": ["abc", "defgh", "i"]}), TOKENIZER, IDS, 4)
    stream = [token for ids in rows["input_ids"] for token in ids]
    assert TOKENIZER.decode(stream) == "abc<|endoftext|>defgh<|endoftext|>i<|endoftext|>"
    assert rows["length"] == [4, 4, 4]
    assert set(rows["prompt_length"]) == {0}
    assert rows["text_bytes"] == [3, 4, 2]
    assert rows["row"] == [0, 1, 1]  # of the first token of each piece


def test_bytes_of_packed_text_add_up_when_characters_are_cut():
    """Rows of 3 tokens cut through é (2 bytes) and 你 (3): a byte counts once, where its character begins."""
    text = "aé你b🙂"
    rows = prepare_rows(Dataset.from_dict({"text": [text]}), TOKENIZER, IDS, 2)
    assert sum(rows["text_bytes"]) == len(text.encode()) == 11
    assert token_bytes("é", [(0, 1), (0, 1)]) == [2, 0]


def test_each_assistant_turn_is_a_row():
    rows = prepare_rows(Dataset.from_list([{"messages": chat("q1", "a1", "q2", "a2")}]), TOKENIZER, IDS, 256)
    texts = [
        (
            TOKENIZER.decode(row["input_ids"][: row["prompt_length"]]),
            TOKENIZER.decode(row["input_ids"][row["prompt_length"] :]),
        )
        for row in rows
    ]
    assert [answer for _, answer in texts] == ["a1<|eot_id|>", "a2<|eot_id|>"]
    assert "a1<|eot_id|>" in texts[1][0]
    assert "q2" not in texts[0][0]
    assert rows["row"] == [0, 0]
    assert rows["text_bytes"] == [2, 2]


def test_streamed_rows_are_the_rows_of_the_whole_dataset():
    whole = pairs(*[(f"q{index}", f"a{index}") for index in range(5)])
    streamed = prepare_rows(whole.to_iterable_dataset(), TOKENIZER, IDS, 64)
    assert list(streamed) == list(prepare_rows(whole, TOKENIZER, IDS, 64))


def rows_out(*lengths: tuple[int, int]) -> list[dict]:
    return [
        {
            "input_ids": list(range(10, 10 + p + r)),
            "length": p + r,
            "prompt_length": p,
            "example_id": i,
            "row": i,
            "text_bytes": r,
        }
        for i, (p, r) in enumerate(lengths)
    ]


def test_collation_scores_the_response_and_its_tail_only():
    """Rows of 2 + 3 and 1 + 1 tokens with two EOS each: 7 and 4 positions, the second padded to 7."""
    batch = Collator(pad_id=0, eos_id=EOS, eos_tail=2)(rows_out((2, 3), (1, 1)))
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 14, EOS, EOS], [10, 11, EOS, EOS, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 7, [1] * 4 + [0] * 3]
    assert batch["response_mask"].int().tolist() == [[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0]]


def test_batch_tail_fills_every_response_to_the_longest():
    batch = Collator(pad_id=0, eos_id=EOS, eos_tail="batch")(rows_out((2, 3), (1, 1)))
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 14, EOS], [10, 11, EOS, EOS, EOS, EOS]]
    assert batch["attention_mask"].all()
    assert batch["response_mask"].sum().item() == 4 + 5


def test_documents_get_no_tail():
    batch = Collator(pad_id=0, eos_id=EOS, eos_tail=3)(rows_out((0, 4), (0, 2)))
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13], [10, 11, 0, 0]]
    assert torch.equal(batch["response_mask"], batch["attention_mask"].bool())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"prompt": "q", "completion": "a"}, {"prompt": "", "completion": "a"}],
            "1 of 2 rows cannot be trained on:\n  1 row has an empty 'prompt': row 1 ",
        ),
        ([{"prompt": "q", "completion": ""}], "1 row has an empty 'completion': row 0 "),
        ([{"prompt": None, "completion": "a"}], "1 row has no value in 'prompt': row 0 "),
        ([{"messages": chat("q")}], "1 row has no assistant turn in 'messages': row 0 .*; row 0: its roles are user"),
        ([{"text": "a"}, {"text": ""}], "1 row has an empty 'text': row 1 "),
        (
            [{"question": "q", "answer": "a"}],
            r"columns are \['answer', 'question'\]; needed are 'prompt' and 'completion'",
        ),
    ],
)
def test_bad_rows_are_named_by_source_row_and_column(rows, message):
    with pytest.raises(DataError, match=f"(?s)^train.jsonl.*{message}"):
        prepare_rows(Dataset.from_list(rows), TOKENIZER, IDS, 64, source="train.jsonl")


def test_overlong_rows_are_refused_by_name_or_dropped_by_count(caplog):
    """Room is 8 less a tail of 2: rows 1 and 2 have 7 and 9 tokens."""
    rows = pairs(("abc", "def"), ("abc", "defg"), ("abcd", "efghi"), ("a", "b"))
    with pytest.raises(
        DataError,
        match=r"2 rows are longer than 6 tokens .*rows 1, 2 \(counted from 0\); row 1: 7 tokens\nRaise max_len",
    ):
        prepare_rows(rows, TOKENIZER, IDS, 8, eos_tail=2)
    kept = prepare_rows(rows, TOKENIZER, IDS, 8, eos_tail=2, drop_overlong=True)
    assert kept["row"] == [0, 3]
    assert "They are left out; 2 examples remain" in caplog.text
    with pytest.raises(DataError, match="Nothing is left"):
        prepare_rows(rows, TOKENIZER, IDS, 3, eos_tail=2, drop_overlong=True)
    streamed = prepare_rows(rows.to_iterable_dataset(), TOKENIZER, IDS, 8, eos_tail=2, drop_overlong=True)
    assert [row["row"] for row in streamed] == [0, 3]
    with pytest.raises(DataError, match="1 row is longer than 6 tokens .*: row 1 "):
        list(prepare_rows(rows.to_iterable_dataset(), TOKENIZER, IDS, 8, eos_tail=2))


def test_a_batch_tail_needs_room_for_one_eos():
    assert len(prepare_rows(pairs(("abc", "defg")), TOKENIZER, IDS, 8, eos_tail="batch")) == 1
    with pytest.raises(DataError, match="less an EOS tail of 1"):
        prepare_rows(pairs(("abc", "defgh")), TOKENIZER, IDS, 8, eos_tail="batch")


def test_local_files_load_by_their_ending(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "q", "completion": "a"}) + "\n")
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    assert load_rows(str(tmp_path / "a.jsonl"))[0] == {"prompt": "q", "completion": "a"}
    assert load_rows(str(tmp_path / "b.txt"))[0]["text"].rstrip("\n") == "one\n\ntwo"  # one document, not lines
    with pytest.raises(FileNotFoundError, match="no such data file: .*c.jsonl"):
        load_rows(str(tmp_path / "c.jsonl"))


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", [0, 1, 2, 3]), ("validation", [0, 1, 2, 3]), ("train[:3]", [0, 1, 2]), ("test[75%:]", [3])],
)
def test_a_local_file_is_one_split_of_which_slices_are_taken(tmp_path, split, expected):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": str(row)}) + "\n" for row in range(4)))
    assert [int(row["text"]) for row in load_rows(str(tmp_path / "a.jsonl"), split=split)] == expected


def test_slices_that_a_local_file_does_not_have_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "0"}\n')
    for split, message in (
        ("train[:1]+train[1:]", "at most one slice"),
        ("train[x]", "at most one slice"),
        ("train[2:]", "has no rows"),
    ):
        with pytest.raises(DataError, match=rf"split='{re.escape(split)}' of .*a.jsonl, .* 1 rows.*{message}"):
            load_rows(str(tmp_path / "a.jsonl"), split=split)
    with pytest.raises(DataError, match="a stream of the file .* has no slices"):
        load_rows(str(tmp_path / "a.jsonl"), split="train[:1]", streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_values_of_a_json_file_keep_their_types(tmp_path, name, streaming):
    """Beside a list the text "4" became a number and "null" None; dates in text became timestamps."""
    rows = [{"a": text, "day": "2020-01-01"} for text in ("4", "null", '{"b": 1}', [], 4, None, "text")] + [{"a": "5"}]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(lines if name == "a.jsonl" else json.dumps(rows, indent=1))
    expected = [{"a": None, "day": None} | row for row in rows]
    assert list(load_rows(str(tmp_path / name), streaming=streaming)) == expected
    (tmp_path / name).write_text(json.dumps({"a": "2021-01-01"}))  # a changed file is read again
    assert list(load_rows(str(tmp_path / name), streaming=streaming)) == [{"a": "2021-01-01"}]


def test_completions_and_documents_of_another_type_are_named(tmp_path):
    for rows, message in (
        (
            [{"prompt": "q", "completion": "1"}, {"prompt": "q", "completion": 2.5}],
            "a number in 'completion'.* found 2.5",
        ),
        ([{"prompt": "q", "completion": "1"}, {"prompt": True, "completion": "1"}], "true or false in 'prompt'"),
        ([{"prompt": "q", "completion": "1"}, {"prompt": "q", "completion": []}], "an empty 'completion'"),
        ([{"text": "1"}, {"text": ["a"]}], r"something else than text in 'text': row 1 .*found \['a'\]"),
        ([{"messages": chat("q", "1")}, {"messages": 3}], "a number in 'messages', where text or a list of messages"),
    ):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(DataError, match=f"^f: 1 of 2 rows cannot be trained on:\n  1 row has {message}"):
            prepare_rows(load_rows(str(tmp_path / "a.jsonl")), TOKENIZER, IDS, 256, source="f")
