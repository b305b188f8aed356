"""All flawed rows of a dataset are reported at once."""

import pytest
from datasets import Dataset
from test_data import IDS, TOKENIZER, chat
from test_vrpo_trainer import PAIRS, pairs, prepare, trainer

from llada.data.flaws import Report
from llada.data.formats import prepare_rows
from llada.data.prepared import with_known_tokens
from llada.data.rows import ROW_COLUMNS, RowForm
from llada.errors import DataError
from llada.training.sft import MaskedDiffusionTrainer
from vrpo.data import PAIR_COLUMNS
from vrpo.training.trainer import VRPOTrainer

GOOD = ("q", "a", "b")
FLAWED = pairs(
    GOOD, ("q", "a", ""), ("q", "c", "c"), ("q" * 63, "a", "b"), ("q", "a" * 63, "b"), ("q", None, "b"), ("q", "a", ""),
    ("q<|mdm_mask|>", "a", "b"), GOOD,
)  # fmt: skip
REPORT = """pairs.jsonl: 7 of 9 rows cannot be trained on:
  2 rows have an empty 'rejected': rows 1, 6 (counted from 0)
  1 row has identical 'chosen' and 'rejected' (set allow_identical to keep them): row 2 (counted from 0)
  1 row has a prompt that leaves no room for an answer in 63 tokens (max_length=64 less an EOS tail of 1): row 3 \
(counted from 0); row 3: 63 tokens
  1 row is longer than 63 tokens (max_length=64 less an EOS tail of 1): row 4 (counted from 0); row 4: 64 tokens
  1 row has no value in 'chosen': row 5 (counted from 0)
  1 row has text in 'prompt' that spells the mask token: row 7 (counted from 0)"""
ADVICE = "Remove them, or set drop_invalid to leave them out (over-long rows: raise max_length, or set drop_overlong)"


def test_all_flaws_are_in_one_error():
    """They were met one run at a time: the first empty row, then the identical ones, then the over-long ones."""
    with pytest.raises(DataError) as caught:
        prepare(FLAWED, source="pairs.jsonl")
    assert str(caught.value) == f"{REPORT}\n{ADVICE}"


def test_drop_invalid_leaves_them_out_with_the_same_report(caplog):
    kept = prepare(FLAWED, source="pairs.jsonl", drop_invalid=True)
    assert kept["row"] == [0, 8]
    assert f"{REPORT}\nThey are left out; 2 examples remain" in caplog.text
    with pytest.raises(DataError, match=r"1 of 1 row(?s:.*)\nNothing is left to train on$"):
        prepare(pairs(("q", "", "b")), drop_invalid=True)


def test_drop_overlong_leaves_out_over_long_rows_only():
    with pytest.raises(DataError) as caught:
        prepare(FLAWED, source="pairs.jsonl", drop_overlong=True)
    assert "5 of 9 rows" in str(caught.value)
    assert "longer than" not in str(caught.value)
    assert str(caught.value).endswith("\nRemove them, or set drop_invalid to leave them out")
    kept = prepare(FLAWED.select([0, 3, 4]), drop_overlong=True)
    assert kept["row"] == [0]


def test_a_stream_warns_of_ten_rows_and_then_counts(caplog):
    rows = pairs(GOOD, *[("q", "", "b")] * 120, GOOD)
    assert [row["row"] for row in prepare(rows.to_iterable_dataset(), drop_invalid=True, source="s")] == [0, 121]
    messages = [record.getMessage() for record in caplog.records]
    first = "s: 1 row cannot be trained on:\n  1 row has an empty 'chosen': row 1 (counted from 0)\nThe row is left out"
    assert messages[0] == first
    assert messages[10:] == ["s: 100 rows were left out so far"]
    with pytest.raises(DataError, match=r"row 1 \(counted from 0\)\nRemove them, or set drop_invalid"):
        list(prepare(rows.to_iterable_dataset()))


def test_flaws_of_every_format_are_left_out(caplog):
    """A dialogue with a flawed turn goes as a whole; documents are packed without the flawed ones."""
    turns = Dataset.from_list([{"messages": chat("q", "a", "r", " ")}, {"messages": chat("q", "a")}])
    assert prepare_rows(turns, TOKENIZER, IDS, 200, drop_invalid=True)["row"] == [1]
    texts = Dataset.from_dict({"text": ["ab", "", None, "<|mdm_mask|>", "c"]})
    packed = prepare_rows(texts, TOKENIZER, IDS, 16, drop_invalid=True)
    assert TOKENIZER.decode(packed[0]["input_ids"]) == "ab<|endoftext|>c<|endoftext|>"
    assert len(packed) == 1
    assert "3 of 5 rows" in caplog.text


def test_a_report_names_ten_rows_of_a_kind():
    report = Report("f", 20)
    for row in range(12):
        report.add(row, "are bad", "")
    assert str(report).endswith("\n  12 rows are bad: rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (counted from 0)")


def test_sides_of_different_kinds_are_said_to_be():
    """Messages before texts ended in "the prompt is empty", because TRL's function took the texts' common beginning."""
    rows = Dataset.from_list([{"prompt": chat("q"), "chosen": "a", "rejected": "b"}])
    said = "messages with 'role' and 'content': row 0 .*; row 0: the prompt is messages, the answer text"
    with pytest.raises(DataError, match=f"both must be text, or both lists of {said}"):
        prepare(rows)
    with pytest.raises(DataError, match="1 row has no 'prompt', and 'chosen' and 'rejected' have no common beginning"):
        prepare(Dataset.from_list([{"chosen": "a", "rejected": "b"}]))
    # As in TRL, a prompt of text beside whole dialogues is not used: their common beginning is the prompt.
    whole = Dataset.from_list([{"prompt": "q", "chosen": chat("q", "a"), "rejected": chat("q", "b")}])
    assert TOKENIZER.decode(prepare(whole, max_length=200)[0]["chosen_ids"]) == "a<|eot_id|>"


def test_columns_of_a_user_do_not_pass_for_tokenized_rows(tmp_path):
    """A column `example_id` did. What tokenized rows have beside it: these columns, and ids that did not change."""
    rows = prepare(pairs(("q", "a", "bc")).map(lambda row: {"example_id": 1, "row": 5, "flaw": "f", "length": 2}))
    assert set(rows.column_names) == PAIR_COLUMNS == VRPOTrainer.prepared_columns
    assert rows[0] == {
        "prompt_ids": TOKENIZER("q").input_ids, "chosen_ids": TOKENIZER("a").input_ids, "length": 3, "row": 0,
        "rejected_ids": TOKENIZER("bc").input_ids, "example_id": 4945074528630495788,
    }  # fmt: skip
    completions = Dataset.from_list([{"prompt": "q", "completion": "a", "example_id": 1}])
    for dataset in (completions, completions.to_iterable_dataset()):
        (row,) = prepare_rows(dataset, TOKENIZER, IDS, 64)
        assert set(row) == ROW_COLUMNS == MaskedDiffusionTrainer.prepared_columns
        assert row["example_id"] == -2046157250226271351


def test_images_and_empty_datasets_are_refused():
    with pytest.raises(
        DataError, match="^d is vision-related: it has the column 'images'.* is a vision-language model"
    ):
        prepare(Dataset.from_list([{"prompt": "q", "chosen": "a", "rejected": "b", "images": [1]}]), source="d")
    for empty in (Dataset.from_list([]), pairs(GOOD).select([])):
        with pytest.raises(DataError, match="^d has no rows$"):
            prepare(empty, source="d")


def test_more_processes_make_the_same_rows():
    rows = pairs(*[(f"q{index}", "a", "b") for index in range(6)])
    assert list(prepare(rows, num_proc=2)) == list(prepare(rows))


def test_the_trainer_leaves_flawed_rows_out(tmp_path):
    run = trainer(tmp_path, rows=[*PAIRS, PAIRS[0] | {"rejected": ""}], drop_invalid=True)
    assert len(run.train_dataset) == len(PAIRS)


SPOKEN = """s: trained on are rows that
  2 rows have messages of other roles than assistant in 'chosen', whose words are scored like its own: rows 1, 3 \
(counted from 0)
  1 row has messages of other roles than assistant in 'rejected', whose words are scored like its own: row 2 \
(counted from 0)"""


def test_words_of_a_user_that_are_scored_are_warned_of(caplog):
    """A side that diverges before its last turn: the user's words after that are scored, as TRL scores them."""
    long, short, other = chat("q", "a", "r", "b"), chat("q", "c"), chat("q", "d")
    sides = [(short, other), (long, other), (short, long), (long, chat("q", "c", "r", "b"))]
    rows = Dataset.from_list([{"chosen": chosen, "rejected": rejected} for chosen, rejected in sides])
    kept = prepare(rows, max_length=400, source="s")
    assert caplog.messages == [SPOKEN]
    assert TOKENIZER.decode(kept[1]["chosen_ids"]).count("<|start_header_id|>user<|end_header_id|>") == 1
    caplog.clear()
    assert len(list(prepare(rows.to_iterable_dataset(), max_length=400, source="s"))) == 4
    (message,) = caplog.messages
    assert message.endswith("like its own: row 1 (counted from 0)\nFurther rows of the stream may be like it")


def test_words_of_a_user_in_a_completion_are_warned_of(caplog):
    turns = chat("q", "a", "r", "b")
    rows = Dataset.from_list([{"prompt": turns[:1], "completion": turns[1:]}])
    prepare_rows(rows, TOKENIZER, IDS, 400)
    assert "1 row has messages of other roles than assistant in 'completion'" in caplog.text
    caplog.clear()
    prepare_rows(rows, TOKENIZER, IDS, 400, form=RowForm(assistant_only_loss=True))  # a row for each answer
    prepare_rows(rows, TOKENIZER, IDS, 400, form=RowForm(completion_only_loss=False))  # everything is to be scored
    assert caplog.messages == []


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["prompt_ids", "chosen_ids", "rejected_ids"])
@pytest.mark.parametrize("token", [-1, -100, 262, 2**40])
def test_prepared_pairs_with_ids_of_another_vocabulary_are_refused(tmp_path, column, token, streaming):
    """They ended in an IndexError of the embedding, or were other words where the vocabulary was larger."""
    rows = prepare(pairs(GOOD, GOOD, GOOD))
    wrong = [row | {column: [65, token]} if number == 1 else row for number, row in enumerate(rows)]
    rows = Dataset.from_list(wrong)
    message = rf"d: row 1 .* has the token id {token} in '{column}', outside the tokenizer's 262 tokens"
    with pytest.raises(DataError, match=message):
        list(with_known_tokens(rows.to_iterable_dataset() if streaming else rows, 262, "d"))
    with pytest.raises(DataError, match=message.replace("d:", "train_dataset:")):
        trainer(tmp_path, rows=wrong)


def test_prepared_rows_of_this_vocabulary_pass_as_they_are():
    rows = prepare_rows(Dataset.from_list([{"input_ids": [0, 261], "labels": [-100, 261]}]), TOKENIZER, IDS, 9)
    assert list(with_known_tokens(rows, 262, "d")) == list(rows)
    assert list(with_known_tokens(rows.to_iterable_dataset(), 262, "d")) == list(rows)
    for label in (-1, -101, 262):
        with pytest.raises(DataError, match=f"row 0 .* has the token id {label} in 'labels'"):
            with_known_tokens(Dataset.from_list([{"input_ids": [0, 261], "labels": [-100, label]}]), 262, "d")
