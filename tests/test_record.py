"""What a run writes down: exact values against plain forms, and a training that does not notice."""

import dataclasses
import json
import logging
import math
from types import SimpleNamespace

import pytest
import test_sft
import test_vrpo_trainer
import torch
from conftest import tiny_model, tiny_moe, trajectory
from datasets import Dataset
from peft import LoraConfig
from test_sft import IDS, TOKENIZER
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.integrations import TensorBoardCallback

from llada.cli.recipe import RecipeArguments
from llada.denoiser import DenoiserSpec
from llada.errors import OutputError
from llada.record import run_file
from llada.record.callback import RunRecord
from llada.record.rows import asked
from llada.record.samples import sample, settings_for, tokens_of
from llada.record.tables import log_table, rows_of
from llada.record.timesteps import TimestepLoss
from llada.sampling.loop import generate
from llada.training.progress import TIMESTEP

ROWS = {"rows": test_sft.PAIRS, "pairs": test_vrpo_trainer.PAIRS, "documents": [{"text": "to be or not to be"}] * 20}
MODULES = {"rows": test_sft, "pairs": test_vrpo_trainer, "documents": test_sft}
CENTRES = [f"{(k + 0.5) / 10:.2f}" for k in range(10)]


def run_of(folder, kind="rows", recorded=True, held_out=True, **changes):
    """A run of two steps in float64, evaluated at each if rows are held out."""
    settings = {"max_steps": 2, "warmup_steps": 0} | ({"rows": ROWS[kind]} if kind == "documents" else {})
    if held_out:
        settings |= dict(eval_dataset=Dataset.from_list(ROWS[kind][:12]), eval_strategy="steps", eval_steps=1)
    run = MODULES[kind].trainer(folder, torch.float64, **(settings | changes))
    if recorded:
        run.add_callback(RunRecord(run))
    return run


def file_of(folder, name):
    return json.loads((folder / name).read_text())


def steps_of(run) -> list[int]:
    """The steps at which the loss by timestep was logged."""
    return [row["step"] for row in run.state.log_history if any(name.startswith(TIMESTEP) for name in row)]


def adapters() -> dict:
    return {"peft_config": LoraConfig(r=2, lora_dropout=0.2)}


RUNS = {
    "rows": ("rows", {}),
    "pairs": ("pairs", {}),
    "pairs, LoRA with dropout": ("pairs", adapters),
    "packed documents": ("documents", lambda: {"packing": True, "packing_strategy": "bfd"}),
    "nothing held out": ("pairs", lambda: {"held_out": False}),
    "mixture of experts": ("rows", lambda: {"model": tiny_moe(seed=1, **IDS)}),
    "autoregressive": ("rows", lambda: {"model": tiny_model(seed=1, causal=True, **IDS), "masks": "bernoulli"}),
}


QUICK = ("rows", "pairs, LoRA with dropout", "autoregressive")


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (x not in QUICK)) for x in RUNS])
def test_training_does_not_notice(tmp_path, name):
    """Losses, gradients and weights with the record and without, to the last bit; and the record is whole."""
    kind, changes = RUNS[name]
    options = dict(changes()) if changes else {}
    held_out, causal = options.get("held_out", True), name == "autoregressive"
    plain = run_of(tmp_path / "plain", kind, recorded=False, **options)
    run = run_of(tmp_path / "run", kind, **(dict(changes()) if changes else {}))
    assert torch.equal(trajectory(plain), trajectory(run))
    for mine, other in zip(plain.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert steps_of(run) == ([0, 1, 2] if held_out and not causal else [])
    assert "loss" in run.state.log_history[-3 if held_out else -2]  # the last step's line was not taken for written
    samples = file_of(tmp_path / "run", "samples.json")["samples"]
    assert [each["step"] for each in samples] == [0, 2]
    for each in samples:
        assert len(each["answers"]) == 4
        for answer in each["answers"]:
            orders = [token["order"] for token in answer["tokens"]]
            assert set(orders) == set(range(max(orders) + 1))
            assert all(0 <= token["confidence"] <= 1 for token in answer["tokens"])
    written = file_of(tmp_path / "run", "run.json")
    assert (written["estimator"] is not None) is (kind == "pairs")
    assert written["model"]["adapters"] is ("LoRA" in name)
    assert written["model"]["trainable"] == sum(p.numel() for p in run.model.parameters() if p.requires_grad)


# The loss by timestep


def naive(run, side: int | None) -> dict[str, float]:
    """The losses by a loop over rows and bins, one forward pass for each, from the masks that `bin_masks` gives."""
    from llada.record.timesteps import bin_masks

    rows, sums = run.eval_dataset, torch.zeros(10, 2, dtype=torch.float64)
    batch = run.collator(training=False)(list(rows))
    masked_KBL = bin_masks(batch, run.args.seed).masked_SBL
    size = len(rows)
    chosen = range(size) if side in (None, 0) else range(size, 2 * size)
    for b in chosen:
        for k in range(10):
            masked_L = masked_KBL[k, b]
            noisy_L = batch["input_ids"][b].masked_fill(masked_L, IDS["mask_token_id"])
            logits_LV = run.model(noisy_L[None], attention_mask=batch["attention_mask"][b][None]).logits[0]
            values_L = logits_LV.log_softmax(-1).gather(-1, batch["input_ids"][b][:, None])[:, 0]
            sums[k] += torch.stack([-values_L[masked_L].sum(), masked_L.sum()])
    return {name: float(nats / count) for name, (nats, count) in zip(CENTRES, sums, strict=True) if count}


@pytest.mark.parametrize(("kind", "sides"), [("rows", [("", None)]), ("pairs", [("_chosen", 0), ("_rejected", 1)])])
@torch.no_grad()
def test_the_loss_by_timestep_is_that_of_a_loop(tmp_path, kind, sides):
    """All rows in batches of similar length, against one row and bin at a time: 1e-10 in float64."""
    run = run_of(tmp_path, kind, recorded=False, per_device_eval_batch_size=5)
    found = TimestepLoss(run)(run.model.eval())
    expected = {f"{TIMESTEP}{name}/{k}": value for name, side in sides for k, value in naive(run, side).items()}
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-10)
    assert found == TimestepLoss(run)(run.model)  # the same masks again


def test_each_bin_has_its_share_of_masks(tmp_path):
    """Over 32 rows of 15 to 23 tokens, the share of masked tokens is within 4 standard errors of the bin's centre."""
    rows = [{"prompt": f"{i}", "completion": "twenty characters or so"[: 15 + i % 9]} for i in range(32)]
    run = run_of(tmp_path, recorded=False, eval_dataset=Dataset.from_list(rows), per_device_eval_batch_size=32)
    (_, draws, _), *_ = TimestepLoss(run).work
    scored = run.collator(training=False)(list(run.eval_dataset))["response_mask"].sum()
    shares_K = draws.masked_SBL.sum((1, 2)) / scored
    centres_K = (torch.arange(10) + 0.5) / 10
    errors_K = (centres_K * (1 - centres_K) / scored).sqrt() + 0.1 / math.sqrt(12 * 32)
    assert ((shares_K - centres_K).abs() < 4 * errors_K).all()


class Uniform(nn.Module):
    """A denoiser that gives every token the same probability, 1 / V."""

    def __init__(self, spec: DenoiserSpec):
        super().__init__()
        self.spec = spec

    def forward(self, input_ids, target_ids=None, **_):
        values = torch.full(input_ids.shape, -math.log(self.spec.vocabulary), dtype=torch.float64)
        return SimpleNamespace(log_probs=values.masked_fill(target_ids == -100, 0.0))


def test_a_uniform_model_has_the_loss_log_v_in_every_bin(tmp_path):
    run = run_of(tmp_path, recorded=False)
    found = TimestepLoss(run)(Uniform(run.spec))
    assert list(found.values()) == pytest.approx([math.log(262)] * len(found), abs=1e-12)


# Samples


def test_tokens_have_the_pass_that_committed_them_and_its_confidence(tmp_path):
    """Against the sampler's own canvas after each pass, one prompt at a time: batching changes nothing."""
    run = run_of(tmp_path, recorded=False)
    prompts = asked(run, 3)
    assert [TOKENIZER.decode(each.prompt) for each in prompts] == ["0: ", "1: ", "2: "]
    found = sample(run, run.model.eval(), prompts)
    settings = dict(gen_length=22, steps=22, block_length=22)  # as the longest answer
    assert {name: found["settings"][name] for name in settings} == settings
    for each, answer in zip(prompts, found["answers"], strict=True):
        canvases: list = []

        def keep(canvas, sure, canvases=canvases):
            canvases.append((canvas[0].clone(), sure[0].clone()))

        generate(run.model, torch.tensor([each.prompt]), **settings, on_step=keep)
        for position, token in enumerate(answer["tokens"], len(each.prompt)):
            step = next(i for i, (canvas, _) in enumerate(canvases) if canvas[position] != IDS["mask_token_id"])
            assert token["order"] == min(step, len(canvases) - 1)
            sure = canvases[-1][1][position].item()
            assert token["confidence"] == pytest.approx(sure, abs=1e-4)
    assert found["answers"][1]["given"] == test_sft.TEXTS[1]


def test_a_character_of_several_tokens_is_shown_once():
    ids = [*TOKENIZER("aé€", add_special_tokens=False).input_ids, IDS["eos_token_id"]]
    shown = tokens_of(TOKENIZER, ids, [0.5] * len(ids), list(range(len(ids))))
    assert [token["text"] for token in shown] == ["a", "", "é", "", "", "€", TOKENIZER.eos_token]


def test_words_keep_the_spaces_between_them():
    """A tokenizer of whole words puts spaces between them when it decodes, and not before a single one."""
    words = ["one", "two", "three"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="one"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    shown = tokens_of(PreTrainedTokenizerFast(tokenizer_object=backend), [2, 0, 1], [0.5] * 3, [0, 1, 2])
    assert [token["text"] for token in shown] == ["three", " one", " two"]


def test_a_prompt_is_asked_once_and_what_follows_an_answer_s_end_is_not_it(tmp_path, monkeypatch):
    rows = [{"prompt": f"{number // 3}?", "completion": f"a{number}"} for number in range(12)]
    run = run_of(tmp_path, recorded=False, eval_dataset=Dataset.from_list(rows))
    prompts = asked(run, 3)
    assert [TOKENIZER.decode(each.prompt) for each in prompts] == ["0?", "1?", "2?"]
    assert [TOKENIZER.decode(each.given, skip_special_tokens=True) for each in prompts] == ["a0", "a3", "a6"]
    assert len(asked(run, 9)) == 4
    answer = sample(run, run.model.eval(), prompts)["answers"][0]
    texts = [token["text"] for token in answer["tokens"]]
    assert "".join(texts[: answer["length"]]) == answer["answer"]


def test_documents_are_continued_and_pairs_have_both_answers(tmp_path):
    (document, *_) = asked(run_of(tmp_path / "a", "documents", recorded=False), 1)
    assert TOKENIZER.decode(document.prompt) == "to be or not to be"[: len(document.prompt)]
    assert len(document.prompt) <= 32
    (pair,) = asked(run_of(tmp_path / "b", "pairs", recorded=False), 1)
    assert [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in (pair.prompt, pair.given, pair.rejected)] == [
        "0? ", "yes", "all of it!"
    ]  # fmt: skip


@pytest.mark.parametrize("error", [FloatingPointError("logits are nan"), torch.OutOfMemoryError("out of memory")])
def test_samples_that_fail_are_a_warning(tmp_path, caplog, monkeypatch, error):
    def failing(*_):
        raise error

    monkeypatch.setattr("llada.record.callback.sample", failing)
    run = run_of(tmp_path, recorded=False, held_out=False)
    record = RunRecord(run)
    record.prompts = asked(run, 4)
    assert not record.add_samples(0)
    assert f"no samples are recorded at step 0 ({type(error).__name__}: {error})" in caplog.text
    assert not (tmp_path / "samples.json").exists()


def test_a_tracker_that_is_away_is_a_warning(caplog):
    """The others still get the table."""

    class Writer:
        def __init__(self, error=None):
            self.error, self.names = error, []

        def add_text(self, name, *_):
            if self.error is not None:
                raise self.error
            self.names.append(name)

    trackers = [TensorBoardCallback(Writer(ConnectionError("no route"))), TensorBoardCallback(Writer())]
    assert rows_of([{"step": 2, "answers": [{"prompt": "a", "answer": "b", "given": None}]}]) == [["a", "", "b", ""]]
    sample = {"step": 0, "answers": [{"prompt": "a", "answer": "b", "given": None}]}
    log_table(trackers, [sample, sample | {"step": 2}], 2)
    assert trackers[1].tb_writer.names == ["samples/0"]
    assert "TensorBoardCallback has not got the samples (ConnectionError: no route)" in caplog.text


def test_a_prompt_that_leaves_no_room_is_not_asked(tmp_path):
    run = run_of(tmp_path, recorded=False)
    first, *others = asked(run, 3)
    assert len(first.prompt) == 3
    run.spec = dataclasses.replace(run.spec, context=3)
    assert not asked(run, 3)
    run.spec = dataclasses.replace(run.spec, context=4)
    assert asked(run, 3) == [first, *others]
    assert settings_for([first, *others], 4).gen_length == 1


def test_a_stream_is_not_read_for_prompts(tmp_path, caplog):
    """To look at its first rows would fill its shuffle buffer, and training would fill it again."""
    run = run_of(tmp_path, recorded=False, held_out=False)
    run.train_dataset = (row for row in run.train_dataset)
    assert RunRecord(run).cannot_sample()
    assert "no samples are recorded: the rows are streamed" in caplog.text


def test_a_run_without_samples_has_none(tmp_path):
    run = run_of(tmp_path, recorded=False, held_out=False, max_steps=1)
    run.add_callback(RunRecord(run, sample_prompts=0))
    run.train()
    assert (tmp_path / "run.json").exists()
    assert not (tmp_path / "samples.json").exists()
    with pytest.raises(ValueError, match="sample_prompts=-1 must be at least 0"):
        RunRecord(run, sample_prompts=-1)


# A run that goes on


CLOCKS = ("eval_runtime", "eval_samples_per", "eval_steps_per")


def without_times(folder) -> tuple:
    run, state = file_of(folder, "run.json"), file_of(folder, "trainer_state.json")
    history = [
        {name: value for name, value in row.items() if not name.startswith(("throughput", "time", "memory", *CLOCKS))}
        for row in state["log_history"] if "train_runtime" not in row
    ]  # fmt: skip
    differ = {"starts", "output_dir", "options"}
    return {key: value for key, value in run.items() if key not in differ}, history, file_of(folder, "samples.json")


def test_a_run_that_was_killed_has_the_record_of_one_that_was_not(tmp_path):
    saving = dict(save_strategy="steps", save_steps=1, max_steps=3)
    whole = run_of(tmp_path / "whole", **saving)
    whole.train()
    whole.save_state()
    run_of(tmp_path / "cut", **saving).train()  # had written all, and lost all after step 1
    for step in (2, 3):
        (tmp_path / "cut" / f"checkpoint-{step}" / "trainer_state.json").unlink()
    again = run_of(tmp_path / "cut", recorded=False, **saving)
    again.add_callback(RunRecord(again, sample_prompts=2))  # it goes on with the four of before
    again.train(resume_from_checkpoint=True)
    again.save_state()
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "cut")
    assert [start["step"] for start in file_of(tmp_path / "cut", "run.json")["starts"]] == [0, 1]


@pytest.mark.slow
def test_the_samples_after_are_of_the_model_that_is_kept(tmp_path):
    """The best of three evaluations is the first, and its weights are loaded at the end."""
    best = dict(
        save_strategy="steps", save_steps=2, eval_steps=2, load_best_model_at_end=True, metric_for_best_model="loss"
    )
    run = run_of(tmp_path, learning_rate=1.0, max_steps=6, **best)
    run.train()
    assert run.state.best_global_step == 2
    samples = file_of(tmp_path, "samples.json")["samples"]
    assert [each["step"] for each in samples] == [0, 2]
    assert sample(run, run.model.eval(), asked(run, 4))["answers"] == samples[-1]["answers"]


def test_a_record_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """As a checkpoint is that cannot be written: the disk that has no room for it has none for the model."""

    def full(path, _):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llada.record.callback.replace_file", full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        run_of(tmp_path, held_out=False).train()


# run.json


def test_run_json_says_what_was_changed(tmp_path):
    RunRecord(run_of(tmp_path, "pairs", recorded=False, beta=0.3, n_t=4)).write_run(goes_on=False)
    found = file_of(tmp_path, "run.json")
    assert found["trainer"] == "Recorded"
    changed = {"beta", "n_t", "max_steps", "learning_rate", "eval_strategy", "use_cpu", "logging_steps", "seed"}
    assert changed <= set(found["changed"])
    assert run_file.options_of([RecipeArguments()])[1] == []
    assert not {"report_to", "bf16", "loss_weights", "loss_type", "output_dir"} & set(found["changed"])
    assert found["options"]["beta"] == 0.3
    assert found["estimator"] == {
        "design": "vrpo", "n": 4, "n_t": 4, "n_yt": 1, "beta": 0.3, "loss": ["sigmoid", "sft"],
    }  # fmt: skip
    assert found["data"] == {"train": None, "rows": 16, "eval": None, "eval_rows": 12}
    (start,) = found["starts"]
    assert (start["step"], start["device"], start["processes"]) == (0, "cpu", 1)
    assert start["versions"]["torch"] == torch.__version__
    assert start["command"][0] == "python"


def test_no_secret_is_written(tmp_path):
    token = "hf_" + "aB3" * 11
    args = test_vrpo_trainer.config(tmp_path, hub_token=token, model_init_kwargs={"token": token, "dtype": "auto"})
    options, changed = run_file.options_of([args])
    assert token not in json.dumps(options)
    assert not {"hub_token", "push_to_hub_token"} & {*options, *changed}
    assert options["model_init_kwargs"] == {"dtype": "auto"}
    assert "pad_token" in options
    command = ["/usr/bin/python3", "align.py", "--hub_token", "abc", "--hub-token=def", "--eos_token", "</s>", token]
    expected = ["python", "align.py", "--hub_token", "(left out)", "--hub-token=(left out)", "--eos_token", "</s>"]
    assert run_file.command_of(command) == [*expected, "(left out)"]
    mapping = '{"token": "abc123", "dtype": "auto", "eos_token": "</s>"}'
    words = ["python", "a.py", mapping, "--kwargs={api_key: abc123}", "data/hf_preferences.jsonl"]
    assert run_file.command_of(words)[2:] == [
        mapping.replace("abc123", "(left out)"), '--kwargs={api_key: "(left out)"}', "data/hf_preferences.jsonl",
    ]  # fmt: skip


def test_options_of_every_kind_are_json(tmp_path):
    assert run_file.json_value({"a": math.inf, "b": (1, {2}), "c": tmp_path, "d": None}) == {
        "a": "inf", "b": [1, [2]], "c": str(tmp_path), "d": None,
    }  # fmt: skip


def test_a_record_is_read_again_whatever_is_in_the_file(tmp_path):
    for content in ("", "[1]", '{"starts": 3}', "{"):
        (tmp_path / "run.json").write_text(content)
        assert run_file.starts_in(tmp_path / "run.json") == []


def test_damaged_samples_are_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        (tmp_path / "samples.json").write_text("{")
        record = RunRecord(run_of(tmp_path, recorded=False))
        assert record.samples_until(2)["samples"] == []
        assert not caplog.records  # it makes none
        record.prompts = asked(record.trainer, 4)
        assert record.samples_until(2)["samples"] == []
    assert "samples.json is missing or damaged" in caplog.text
