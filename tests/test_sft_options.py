"""SFTTrainer's constructor and SFTConfig's options: which rows come out, which of their tokens are scored."""

import dataclasses
import inspect

import pytest
import torch
from conftest import tiny_model
from datasets import Dataset
from peft import PromptEncoderConfig, TaskType, get_peft_model
from test_sft import IDS, TOKENIZER, config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, TrainingArguments
from trl import SFTConfig

from llada.data.formats import prepare_rows
from llada.data.rows import RowForm, example_id
from llada.data.tokenizer import byte_tokenizer, set_eos, set_template, special_ids
from llada.errors import DataError
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer

SPECIAL = special_ids(TOKENIZER)
EOS = "<|endoftext|>"
TURN = "<|eot_id|>"
DIALOGUE = [
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "a2"},
]


def rows_of(rows, max_length=200, **form):
    return prepare_rows(Dataset.from_list(rows), TOKENIZER, SPECIAL, max_length, form=RowForm(**form))


def scored(row) -> str:
    return TOKENIZER.decode([label for label in row["labels"] if label != -100])


def text(row) -> str:
    return TOKENIZER.decode(row["input_ids"])


def trainer(tmp_path, rows, processing_class=TOKENIZER, **changes) -> MaskedDiffusionTrainer:
    arguments = set(inspect.signature(MaskedDiffusionTrainer).parameters) & set(changes)
    extra = {key: changes.pop(key) for key in arguments}
    rows = Dataset.from_list(rows) if isinstance(rows, list) else rows
    args = config(tmp_path, dataloader_drop_last=False, **changes)
    return MaskedDiffusionTrainer(
        tiny_model(seed=1, **IDS), args, train_dataset=rows, processing_class=processing_class, **extra
    )


def test_completion_only_loss():
    rows = [{"prompt": "ab", "completion": "cd"}]
    for value in (None, True):
        (row,) = rows_of(rows, completion_only_loss=value)
        assert (text(row), scored(row), row["prompt_length"], row["text_bytes"]) == ("abcd", "cd", 2, 2)
    (row,) = rows_of(rows, completion_only_loss=False)  # ends like a document, so that the collator appends nothing
    assert (text(row), scored(row), row["prompt_length"], row["text_bytes"]) == (f"abcd{EOS}", f"abcd{EOS}", 0, 4)
    with pytest.raises(DataError, match="completion_only_loss=True needs the columns 'prompt' and 'completion'"):
        rows_of([{"text": "ab"}], completion_only_loss=True)


def test_assistant_only_loss_of_dialogues():
    for value in (None, True):
        rows = rows_of([{"messages": DIALOGUE}], assistant_only_loss=value)
        assert [scored(row) for row in rows] == [f"a1{TURN}", f"a2{TURN}"]
    (row,) = rows_of([{"messages": DIALOGUE}], assistant_only_loss=False)
    assert scored(row) == text(row) == TOKENIZER.apply_chat_template(DIALOGUE, tokenize=False) + EOS
    assert row["text_bytes"] == 8
    with pytest.raises(DataError, match="assistant_only_loss=True needs messages"):
        rows_of([{"text": "ab"}], assistant_only_loss=True)


def test_assistant_only_loss_of_completions_with_a_user_turn():
    """Both masks apply in TRL: assistant turns of the completion are scored, its user turn is not."""
    pair = {"prompt": DIALOGUE[:1], "completion": DIALOGUE[1:]}
    assert "q2" in scored(rows_of([pair])[0])
    assert [scored(row) for row in rows_of([pair], assistant_only_loss=True)] == [f"a1{TURN}", f"a2{TURN}"]
    later = {"prompt": DIALOGUE[:3], "completion": DIALOGUE[3:]}
    assert [scored(row) for row in rows_of([later], assistant_only_loss=True)] == [f"a2{TURN}"]
    both = rows_of([later], assistant_only_loss=True, completion_only_loss=False)
    assert [scored(row) for row in both] == [f"a1{TURN}", f"a2{TURN}"]
    with pytest.raises(DataError, match="1 row has text in 'prompt', where assistant_only_loss needs messages"):
        rows_of([{"prompt": "a", "completion": "b"}], assistant_only_loss=True)


def test_documents_are_packed_unless_packing_is_off():
    rows = [{"text": "abc"}, {"text": "defgh"}, {"text": "i"}]
    assert [text(row) for row in rows_of(rows, 4)] == [f"abc{EOS}", "defg", f"h{EOS}i{EOS}"]
    alone = rows_of(rows, 6, packing=False)
    assert [text(row) for row in alone] == [f"abc{EOS}", f"defgh{EOS}", f"i{EOS}"]
    assert all(row["labels"] == row["input_ids"] and row["prompt_length"] == 0 for row in alone)
    with pytest.raises(DataError, match="1 row is longer than 5 tokens .*row 1"):
        rows_of(rows, 5, packing=False)


def test_packing_keeps_rows_whole():
    """Best fit: the longest rows first, and a row of 2 tokens fills a row of 4 up to 6."""
    rows = [{"text": "abc"}, {"text": "defgh"}, {"text": "i"}]
    packed = rows_of(rows, 6, packing=True)
    assert [text(row) for row in packed] == [f"defgh{EOS}", f"abc{EOS}i{EOS}"]
    assert packed["seq_lengths"] == [[6], [4, 2]]
    assert packed["row"] == [1, 0]
    assert packed["text_bytes"] == [5, 4]
    with pytest.raises(DataError, match="1 row is longer than 5 tokens"):
        rows_of(rows, 5, packing=True)
    split = rows_of(rows, 5, packing=True, packing_strategy="bfd_split")
    assert sorted(token for row in split for token in row["input_ids"]) == sorted(
        token for row in packed for token in row["input_ids"]
    )
    assert max(split["length"]) == 5


def test_packed_answers_keep_their_prompts_and_their_end():
    rows = [{"prompt": "ab", "completion": "cd"}, {"prompt": "e", "completion": "f"}]
    (row,) = rows_of(rows, 8, packing=True)
    assert (text(row), scored(row), row["seq_lengths"]) == (f"abcd{EOS}ef{EOS}", f"cd{EOS}f{EOS}", [5, 3])
    assert row["prompt_length"] == 0  # the collator appends no further EOS
    with pytest.raises(DataError, match="packing_strategy='wrapped' cuts rows"):
        rows_of(rows, 8, packing=True, packing_strategy="wrapped")
    with pytest.raises(DataError, match="eos_tail='batch' fills a row with EOS"):
        prepare_rows(Dataset.from_list(rows), TOKENIZER, SPECIAL, 8, "batch", form=RowForm(packing=True))


def test_packed_rows_do_not_see_each_other(tmp_path):
    """Log-probabilities in a packed row equal those of its rows alone."""
    rows = [{"text": "abcde"}, {"text": "xyz"}]
    run = trainer(tmp_path, rows, packing=True, max_length=16)
    alone = trainer(tmp_path, rows, packing=False, max_length=16)
    batch, single = run.data_collator(list(run.train_dataset)), alone.data_collator(list(alone.train_dataset))
    assert batch["segment_ids"].tolist() == [[0] * 6 + [1] * 4]
    assert "segment_ids" not in single
    model = tiny_model(seed=1, **IDS).double()
    tokens = batch["input_ids"]
    noisy = tokens.masked_fill(torch.arange(10) % 2 == 0, SPECIAL.mask)
    packed = run.denoiser(model, batch).log_probs(noisy, tokens, batch["attention_mask"])[0]
    for piece in (slice(0, 6), slice(6, 10)):
        expected = alone.denoiser(model).log_probs(noisy[:, piece], tokens[:, piece])[0]
        assert (packed[piece] - expected).abs().max() < 1e-12


def test_evaluation_data_have_their_own_packing(tmp_path):
    rows = [{"text": "abc"}, {"text": "de"}]
    held_out = Dataset.from_list(rows)
    assert len(trainer(tmp_path, rows, eval_dataset=held_out, packing=True).eval_dataset) == 1
    run = trainer(tmp_path, rows, eval_dataset=held_out, packing=True, eval_packing=False)
    assert (len(run.train_dataset), len(run.eval_dataset)) == (1, 2)


def test_tokenized_rows_are_taken_as_they_are():
    ids = [65, 66, 67, 68]
    rows = rows_of([{"input_ids": ids, "attention_mask": [1] * 4}])
    assert (rows[0]["input_ids"], rows[0]["labels"], rows[0]["prompt_length"]) == (ids, ids, 0)
    assert rows[0]["example_id"] == example_id(ids, 0)
    masked = [{"input_ids": ids, "completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 1, 0, 1]}]
    (both,) = rows_of(masked)
    assert both["labels"] == [-100, 66, -100, 68]
    assert both["text_bytes"] == 2
    (whole,) = rows_of(masked, completion_only_loss=False)
    assert whole["labels"] == [65, 66, -100, 68]
    assert len({both["example_id"], whole["example_id"], example_id(ids, 0)}) == 3
    (labelled,) = rows_of([masked[0] | {"labels": [65, -100, -100, -100]}])
    assert labelled["labels"] == [65, -100, -100, -100]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": []}, "has an empty 'input_ids'"),
        ({"input_ids": [65, 262]}, "outside the tokenizer's vocabulary"),
        ({"input_ids": [65, -1]}, "outside the tokenizer's vocabulary"),
        ({"input_ids": [65.0, 3.5]}, "something else than whole numbers in 'input_ids'"),
        ({"input_ids": [True, False]}, "something else than whole numbers in 'input_ids'"),
        ({"input_ids": [65, None]}, "something else than whole numbers in 'input_ids'"),
        ({"input_ids": ["65"]}, "something else than whole numbers in 'input_ids'"),
        ({"input_ids": "abc"}, "something else than whole numbers in 'input_ids'"),
        ({"input_ids": 65}, "something else than whole numbers in 'input_ids'"),
        ({"input_ids": None}, "has an empty 'input_ids'"),
        ({"input_ids": [65], "labels": [None]}, "neither -100 nor the token of their position"),
        ({"input_ids": [65], "labels": [-1]}, "neither -100 nor the token of their position"),
        ({"input_ids": [65], "labels": 65}, "has another number of values in 'labels'"),
        ({"input_ids": [65, 258]}, "has the mask token in 'input_ids'"),
        ({"input_ids": [65], "labels": [65, 66]}, "has another number of values in 'labels'"),
        ({"input_ids": [65, 66], "labels": [65, 67]}, "neither -100 nor the token of their position"),
        ({"input_ids": [65, 66], "assistant_masks": [0, 0]}, "has no scored token"),
        ({"input_ids": [65, 66], "attention_mask": [1, 0]}, "has padding"),
    ],
)
def test_tokenized_rows_that_cannot_be_trained_on(row, message):
    with pytest.raises(DataError, match=message):
        rows_of([row])


def test_the_scored_tokens_of_a_batch_are_the_labels(tmp_path):
    rows = [{"input_ids": [65, 66, 67], "labels": [65, -100, 67]}, {"input_ids": [68], "labels": [68]}]
    run = trainer(tmp_path, rows)
    batch = run.data_collator(list(run.train_dataset))
    assert batch["input_ids"].tolist() == [[65, 66, 67], [68, 257, 257]]
    assert batch["response_mask"].tolist() == [[True, False, True], [True, False, False]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_rows_that_skip_preparation(tmp_path):
    skip = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    rows = [{"input_ids": [65, 66, 67], "labels": [65, -100, 67]}]
    run = trainer(tmp_path, rows, **skip)
    assert run.train_dataset.column_names == ["input_ids", "labels"]
    prepared = trainer(tmp_path, rows)
    ours, theirs = run.data_collator(rows), prepared.data_collator(list(prepared.train_dataset))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if key != "row")
    with pytest.raises(DataError, match="skip_prepare_dataset left as it is has no scored token"):
        run.data_collator([{"input_ids": [65], "labels": [-100]}])
    with pytest.raises(DataError, match="is longer than 48 tokens"):
        run.data_collator([{"input_ids": [65] * 49}])
    with pytest.raises(ValueError, match="Add a 'labels' column"):
        trainer(tmp_path, [{"input_ids": [65, 66], "assistant_masks": [0, 1]}], **skip)
    with pytest.raises(ValueError, match="unknown keys \\['add_special_tokens'\\]"):
        config(tmp_path, dataset_kwargs={"add_special_tokens": False})


def test_a_dataset_with_a_transform_is_not_prepared(tmp_path):
    rows = Dataset.from_dict({"n": [1, 2]})
    tokens = rows.with_transform(lambda batch: {"input_ids": [[64 + n, 70] for n in batch["n"]]})
    with pytest.raises(ValueError, match=r"train_dataset has a transform .*skip_prepare_dataset"):
        trainer(tmp_path, tokens)
    run = trainer(tmp_path, tokens, dataset_kwargs='{"skip_prepare_dataset": true}', max_steps=1)
    run.train()
    assert run.state.log_history[0]["num_tokens"] == 4


def test_formatting_func_and_the_column_of_documents(tmp_path):
    rows = [{"q": "1", "a": "2"}, {"q": "3", "a": "4"}]
    run = trainer(tmp_path, rows, formatting_func=lambda row: f"{row['q']}={row['a']}", packing=False)
    assert [text(row) for row in run.train_dataset] == [f"1=2{EOS}", f"3=4{EOS}"]
    run = trainer(tmp_path, rows, dataset_text_field="a", packing=False)
    assert [text(row) for row in run.train_dataset] == [f"2{EOS}", f"4{EOS}"]
    with pytest.raises(TypeError, match="formatting_func must return the text of one row, but returned \\['1'\\]"):
        trainer(tmp_path, rows, formatting_func=lambda row: [row["q"]])
    with pytest.raises(ValueError, match="formatting_func makes a document of each row"):
        trainer(tmp_path, rows, formatting_func=str, completion_only_loss=True)


@pytest.mark.parametrize("streamed", [False, True])
def test_shuffled_data_keep_their_row_numbers(tmp_path, streamed):
    rows = Dataset.from_list([{"text": chr(97 + number)} for number in range(20)])
    rows = rows.to_iterable_dataset() if streamed else rows
    run = trainer(tmp_path, rows, eval_dataset=rows, shuffle_dataset=True, packing=False)
    train, held_out = list(run.train_dataset), list(run.eval_dataset)
    numbers = [row["row"] for row in train]
    assert numbers != sorted(numbers) == list(range(20))
    assert all(text(row) == chr(97 + row["row"]) + EOS for row in train)
    assert [row["row"] for row in held_out] == list(range(20))


def test_chat_template_from_a_file_or_a_tokenizer(tmp_path):
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    (tmp_path / "t.jinja").write_text(template)
    tokenizer = byte_tokenizer()
    set_template(tokenizer, str(tmp_path / "t.jinja"))
    assert tokenizer.chat_template == template
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    other = byte_tokenizer()
    set_template(other, str(tmp_path / "tokenizer"))
    assert other.chat_template == template
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    words.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="that tokenizer has no chat template"):
        set_template(tokenizer, str(tmp_path / "plain"))
    (tmp_path / "closed.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(ValueError, match="the template ignores add_generation_prompt"):
        set_template(tokenizer, str(tmp_path / "closed.jinja"))


def test_the_template_is_set_before_rows_are_prepared(tmp_path):
    head = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '|' }}{% endfor %}"
    (tmp_path / "t.jinja").write_text(head + "{% if add_generation_prompt %}assistant:{% endif %}")
    run = trainer(
        tmp_path, [{"messages": DIALOGUE[:2]}], byte_tokenizer(), chat_template_path=str(tmp_path / "t.jinja")
    )
    assert [(text(row), scored(row)) for row in run.train_dataset] == [("user:q1|assistant:a1|", "a1|")]


def test_eos_token_is_set_on_tokenizer_and_model(tmp_path):
    tokenizer = byte_tokenizer()
    run = trainer(tmp_path, [{"text": "ab"}], tokenizer, eos_token=TURN, packing=False)
    assert text(run.train_dataset[0]) == f"ab{TURN}"
    assert run.model.config.eos_token_id == run.spec.eos_id == tokenizer.eos_token_id == 261
    with pytest.raises(ValueError, match="eos_token='<end>' is not in the tokenizer's vocabulary"):
        set_eos(tokenizer, run.model.config, "<end>")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "dft"}, "loss_type='dft' is refused"),
        ({"packing_strategy": "ffd"}, "packing_strategy='ffd' is unknown: it must be one of"),
        ({"metric_for_best_model": "eval_mean_token_accuracy"}, "needs the logits of whole rows"),
        ({"padding_free": True}, "padding_free=True is refused"),
        ({"compute_loss_func": print}, "compute_loss_func is refused.*override compute_loss"),
        ({"preprocess_logits_for_metrics": print}, "preprocess_logits_for_metrics is refused.*use compute_metrics"),
    ],
)
def test_what_means_nothing_here_is_refused_with_its_reason(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, [{"text": "ab"}], **changes)


def test_adapters_that_learn_a_prompt_are_refused_in_a_wrapped_model(tmp_path):
    prompts = PromptEncoderConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2, num_attention_heads=2, num_layers=1, token_dim=16
    )
    model = get_peft_model(tiny_model(seed=1, **IDS), prompts)
    with pytest.raises(ValueError, match="PromptEncoderConfig is not supported"):
        MaskedDiffusionTrainer(model, config(tmp_path), train_dataset=[{"text": "ab"}], processing_class=TOKENIZER)


def test_plain_training_arguments_keep_the_recipe(tmp_path):
    """What is left at TrainingArguments' default keeps our default, what is set is kept."""
    given = TrainingArguments(str(tmp_path), learning_rate=3e-4, use_cpu=True, report_to="none", warmup_steps=7)
    args = MaskedDiffusionConfig.of(given)
    ours = MaskedDiffusionConfig(str(tmp_path), learning_rate=3e-4, use_cpu=True, report_to="none", warmup_steps=7)
    different = {
        field.name for field in dataclasses.fields(args) if getattr(args, field.name) != getattr(ours, field.name)
    }
    assert different == set()
    assert (args.weight_decay, args.logging_steps, args.lr_scheduler_type) == (0.1, 10, "warmup_stable_decay")
    with pytest.raises(TypeError, match="args must be a MaskedDiffusionConfig or TrainingArguments, but is dict"):
        MaskedDiffusionConfig.of({"output_dir": "x"})


def test_without_arguments_the_output_directory_is_named_after_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model(seed=1, **IDS).save_pretrained("tiny")
    TOKENIZER.save_pretrained("tiny")
    run = MaskedDiffusionTrainer("tiny", train_dataset=[{"text": "ab"}])
    assert run.args.output_dir == "tiny-SFT"


def test_an_optimizer_by_class(tmp_path):
    sgd = (torch.optim.SGD, {"lr": 0.5})
    run = trainer(tmp_path, [{"text": "ab"}], optimizer_cls_and_kwargs=sgd)
    assert type(run.create_optimizer()) is torch.optim.SGD
    assert {group["lr"] for group in run.optimizer.param_groups} == {0.5}


def test_packed_rows_keep_their_segments_when_unused_columns_are_removed(tmp_path):
    rows = [{"text": "abcd"}, {"text": "ef"}] * 8
    settings = dict(packing=True, max_length=9, max_steps=1)
    runs = [trainer(tmp_path, rows, remove_unused_columns=remove, **settings) for remove in (True, False)]
    batches = [next(iter(run.get_train_dataloader())) for run in runs]
    assert batches[0]["segment_ids"].max() == 1
    assert torch.equal(batches[0]["segment_ids"], batches[1]["segment_ids"])


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # of an option that TRL sets
def test_trl_s_sft_config_is_refused_because_its_options_would_be_lost(tmp_path):
    with pytest.raises(TypeError, match="SFTConfig"):
        MaskedDiffusionTrainer(
            tiny_model(seed=1, **IDS), SFTConfig(str(tmp_path), use_cpu=True, bf16=False),
            train_dataset=[{"text": "a"}], processing_class=TOKENIZER,
        )  # fmt: skip


def test_scheduler_options_are_not_changed_by_a_run(tmp_path):
    given = {"min_lr_ratio": 0.5}
    run = trainer(
        tmp_path, [{"text": "ab"}] * 8, lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=given,
        decay_steps=2, learning_rate=1.0, warmup_steps=0, max_steps=4,
    )  # fmt: skip
    run.train()
    assert run.args.lr_scheduler_kwargs == given == {"min_lr_ratio": 0.5}
    rates = [line["learning_rate"] for line in run.state.log_history if "learning_rate" in line]
    assert rates == pytest.approx([1.0, 1.0, 1.0, 0.75])  # two stable steps, then linearly down to one half
