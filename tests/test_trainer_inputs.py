"""Trainers are built from what TRL's are built from, and a step is the mean over its rows however they are split."""

import copy
import logging

import pytest
import test_sft as sft
import test_vrpo_trainer as vrpo
import torch
from conftest import tiny_model, trajectory, two_processes
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from test_sft import IDS, TOKENIZER
from test_tokenizer import ANSWER, PUBLISHED_TEMPLATE, QUESTION
from transformers import AutoModelForCausalLM, TrainingArguments

from llada.cli.old_run import refuse_to_delete
from llada.errors import DataError, RecipeError
from llada.models.common.lora import wrap_with_adapters
from llada.training.even_rows import PADDING
from llada.training.inputs import as_datasets, load
from vrpo import VRPOConfig, VRPOTrainer

KINDS = {"sft": sft, "vrpo": vrpo}
ROWS = {"sft": sft.PAIRS[:13], "vrpo": vrpo.PAIRS[:13]}


class Evaluation:
    """The metrics of an evaluation in the shape of a trajectory."""

    def __init__(self, run):
        self.run = run

    def train(self):
        metrics = self.run.evaluate()
        self.losses = {0: metrics["eval_loss"]}
        self.norms = [metrics.get("eval_bits_per_token", metrics.get("eval_logps/chosen"))]


def trainer(out, dtype=torch.float64, kind="sft", streamed=False, evaluation=False, **changes):
    """A trainer on 13 rows, which no batch divides, or an evaluation of 7 streamed rows."""
    rows = Dataset.from_list(ROWS[kind])
    settings = dict(dataloader_drop_last=False, max_steps=8) | changes
    if evaluation:
        settings["eval_dataset"] = Dataset.from_list(ROWS[kind][:7]).to_iterable_dataset()
    rows = rows.to_iterable_dataset() if streamed else rows
    if kind == "vrpo":
        model = tiny_model(seed=1, dtype=dtype, **IDS)
        extra = {key: settings.pop(key) for key in ("eval_dataset",) if key in settings}
        args = vrpo.config(out, **settings)
        run = vrpo.Recorded(model, args=args, train_dataset=rows, processing_class=TOKENIZER, **extra)
    else:
        run = sft.trainer(out, dtype, rows=rows, masks="exact_count", **settings)
    return Evaluation(run) if evaluation else run


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_window_of_a_pass_weighs_its_rows_alike(tmp_path, kind):
    """13 rows: batches of 4, 4 | 4, 1 in two micro-batches each are the steps of 8 and 5 rows of one batch."""
    whole = trajectory(trainer(tmp_path, kind=kind, per_device_train_batch_size=8))
    split = trajectory(trainer(tmp_path, kind=kind, per_device_train_batch_size=4, gradient_accumulation_steps=2))
    assert (whole - split).abs().max() <= 1e-10


@pytest.mark.parametrize(
    ("kind", "streamed", "remove"),
    [
        pytest.param(*each, marks=pytest.mark.slow)
        for each in (("sft", True, False), ("sft", False, False), ("vrpo", False, True))
    ],
)
def test_two_processes_do_not_repeat_rows(tmp_path, kind, streamed, remove):
    """13 rows on two processes: the step of 5 rows has them once, and padding weighs nothing."""
    whole = trajectory(trainer(tmp_path, kind=kind, streamed=streamed))
    settings = dict(kind=kind, streamed=streamed, per_device_train_batch_size=4, remove_unused_columns=remove)
    split = two_processes(tmp_path, "test_trainer_inputs", torch.float64, **settings)
    assert (whole - split).abs().max() <= 1e-10


@pytest.mark.slow
def test_two_processes_group_rows_by_length(tmp_path):
    settings = dict(kind="vrpo", train_sampling_strategy="group_by_length", per_device_train_batch_size=4, max_steps=2)
    assert two_processes(tmp_path, "test_trainer_inputs", torch.float64, **settings).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_evaluate_a_stream_s_rows_once(tmp_path, kind):
    settings = dict(kind=kind, evaluation=True, per_device_eval_batch_size=4)
    alone = trajectory(trainer(tmp_path, **settings))
    together = two_processes(tmp_path, "test_trainer_inputs", torch.float64, **settings)
    assert (alone - together).abs().max() <= 1e-6  # the metrics are gathered in float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_s_last_step_is_that_of_stored_rows(tmp_path, kind):
    """13 rows in order, three micro-batches of 4 a step: 12 rows, then one, which once leaked into the next step."""
    settings = dict(kind=kind, per_device_train_batch_size=4, gradient_accumulation_steps=3, max_steps=4)
    streamed = trajectory(trainer(tmp_path, streamed=True, **settings))
    stored = trajectory(trainer(tmp_path, train_sampling_strategy="sequential", **settings))
    assert (streamed - stored).abs().max() <= 1e-10


def test_metrics_of_unlogged_steps_are_in_the_last_line_and_not_in_the_next_run(tmp_path):
    run = vrpo.trainer(tmp_path, max_steps=2, logging_steps=10)
    run.train()
    assert run.state.log_history[-1]["rewards/margins"] == pytest.approx(0.0, abs=0.1)
    assert run.state.log_history[-1]["num_tokens"] > 0
    assert not run.metric_sums.sums


def test_the_seed_reaches_the_weights_of_new_adapters(tmp_path):
    def first_weights(seed):
        run = sft.trainer(tmp_path, peft_config=LoraConfig(r=2), seed=seed)
        return next(weight for name, weight in run.model.named_parameters() if "lora_A" in name).detach().clone()

    torch.manual_seed(7)
    one = first_weights(3)
    assert torch.equal(one, first_weights(3))
    assert not torch.equal(one, first_weights(4))


def test_a_model_with_an_adapter_is_its_own_reference_by_a_frozen_copy(tmp_path):
    """As in TRL: the adapter "ref" keeps the initial policy, and the score starts at 0 although the adapter is not."""
    policy = get_peft_model(tiny_model(seed=1, **IDS), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    run = vrpo.trainer(tmp_path, model=policy, max_steps=2, learning_rate=1e-2)
    weights = dict(run.model.named_parameters())
    frozen = {name: weight.detach().clone() for name, weight in weights.items() if ".ref." in name}
    assert frozen
    batch = vrpo.first_batch(run)
    scores = run.scores(run.denoiser(run.model), batch, epoch=0)
    assert torch.equal(scores.policy.joined(), scores.reference.joined())
    trained = {name: weight.detach().clone() for name, weight in weights.items() if ".default." in name}
    run.train()
    assert all(torch.equal(weights[name], weight) for name, weight in frozen.items())
    assert all(not torch.equal(weights[name], weight) for name, weight in trained.items())


def test_a_directory_of_adapters_is_a_model_to_train_on(tmp_path):
    """The base comes from the adapters' config, the tokenizer from the directory; transformers' own form is refused."""
    tiny_model(seed=1, dtype=torch.float32, **IDS).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    wrap_with_adapters(base, LoraConfig(r=2)).save_pretrained(tmp_path / "adapters")
    TOKENIZER.save_pretrained(tmp_path / "adapters")
    args = vrpo.config(tmp_path, max_steps=1)
    run = VRPOTrainer(str(tmp_path / "adapters"), args=args, train_dataset=vrpo.PAIRS)
    assert {"default", "ref"} == set(run.model.peft_config)
    assert any(weight.requires_grad for weight in run.model.parameters())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapters")
    with pytest.raises(ValueError, match="adapters that transformers has loaded"):
        VRPOTrainer(loaded, args=args, train_dataset=vrpo.PAIRS, processing_class=TOKENIZER)


def test_rows_come_in_every_form(tmp_path):
    """A list of rows trains like a dataset; evaluation sets may be dicts, and `evaluate` and `predict` take raw
    rows."""
    rows = vrpo.PAIRS[:8]
    named = DatasetDict({"one": Dataset.from_list(rows[:4]), "two": Dataset.from_list(rows[4:])})
    run = vrpo.trainer(tmp_path, rows=rows, eval_dataset=named)
    run.train_dataset = run.prepared(rows, "train_dataset")
    metrics = run.evaluate()
    assert metrics["eval_one_loss"] == run.evaluate(rows[:4])["eval_loss"]
    assert metrics["eval_two_loss"] == run.predict(rows[4:]).metrics["test_loss"]


def test_the_tokenizer_is_the_model_s_and_settings_load_it(tmp_path):
    tiny_model(seed=1, dtype=torch.float32, **IDS).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    args = VRPOConfig(
        output_dir=str(tmp_path),
        model_init_kwargs={"dtype": "bfloat16", "revision": "main"},
        report_to="none",
        use_cpu=True,
    )
    run = VRPOTrainer(str(tmp_path / "model"), args=args, train_dataset=vrpo.PAIRS)
    assert run.processing_class.get_vocab() == TOKENIZER.get_vocab()
    assert run.model.dtype == run.ref_model.dtype == torch.bfloat16
    assert {"dpo", "trl", "vrpo"} <= set(run.model.model_tags)
    run.create_model_card(model_name="mine", dataset_name="pairs", tags="more")
    assert "mine" in (tmp_path / "README.md").read_text()


def test_a_given_tokenizer_loses_the_published_template(tmp_path, caplog):
    """AutoTokenizer's template of the published file opens another turn after each answer, which must not be taught."""
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = PUBLISHED_TEMPLATE
    rows = [{"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [dict(ANSWER, content="b")]}] * 8
    with caplog.at_level(logging.WARNING, logger="llada.training.inputs"):
        run = VRPOTrainer(
            tiny_model(seed=1, **IDS), args=vrpo.config(tmp_path), train_dataset=rows, processing_class=tokenizer
        )
    assert run.processing_class.decode(run.train_dataset[0]["chosen_ids"]) == "a<|eot_id|>"
    assert "published chat template, which opens another turn" in caplog.text


def test_compute_metrics_gets_our_metrics_of_each_pair(tmp_path):
    def accuracy(prediction):
        return {"wins": float((prediction.predictions["rewards/margins"] > 0).mean())}

    args = vrpo.config(tmp_path)
    run = VRPOTrainer(
        tiny_model(seed=1, **IDS), args=args, train_dataset=vrpo.PAIRS, eval_dataset=vrpo.PAIRS,
        processing_class=TOKENIZER, compute_metrics=accuracy,
    )  # fmt: skip
    metrics = run.evaluate()
    assert metrics["eval_wins"] == metrics["eval_rewards/accuracies"]


def test_the_reference_follows_the_policy_with_sync_ref_model(tmp_path):
    """TR-DPO: after the synchronization at step 2 the reference is 0.6 policy + 0.4 old reference."""
    run = vrpo.trainer(tmp_path, max_steps=2, sync_ref_model=True, ref_model_sync_steps=2)
    before = copy.deepcopy(run.ref_model)
    run.train()
    triples = zip(run.ref_model.parameters(), run.model.parameters(), before.parameters(), strict=True)
    assert max((new - 0.6 * policy - 0.4 * old).abs().max().item() for new, policy, old in triples) <= 1e-12


@pytest.mark.parametrize("losses", [["sigmoid", "sft"], ["sigmoid"]])
def test_the_replayed_gradient_with_ld_alpha_is_that_of_the_full_graph(tmp_path, losses):
    settings = dict(ld_alpha=0.3, loss_type=losses, loss_weights=None)
    full, replayed = (vrpo.moved(vrpo.trainer(tmp_path, **settings)) for _ in range(2))
    batch = vrpo.first_batch(full)
    loss = full.compute_loss(full.model, batch)
    loss.backward()
    assert replayed.training_step(replayed.model, batch).item() == pytest.approx(loss.item(), abs=1e-12)
    pairs = zip(full.model.parameters(), replayed.model.parameters(), strict=True)
    assert max((a.grad - b.grad).abs().max().item() for a, b in pairs) <= 1e-12
    plain = vrpo.moved(vrpo.trainer(tmp_path, **(settings | {"ld_alpha": 1.0})))
    assert plain.compute_loss(plain.model, batch).item() != pytest.approx(loss.item(), abs=1e-6)
    none = vrpo.moved(vrpo.trainer(tmp_path, **(settings | {"ld_alpha": None})))
    assert none.compute_loss(none.model, batch).item() == plain.compute_loss(plain.model, batch).item()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(args=TrainingArguments("out", use_cpu=True)), TypeError, "args must be a VRPOConfig, but is a TrainingA"),
        (dict(train_dataset=None), ValueError, "`train_dataset` is required"),
        (dict(train_dataset="pairs.jsonl"), TypeError, "must be a `Dataset` or `IterableDataset` or a list of rows"),
        (dict(train_dataset=[]), DataError, "train_dataset has no rows"),
        (dict(processing_class=None), ValueError, "needs processing_class"),
        (dict(processing_class="bytes"), TypeError, "processing_class must be a tokenizer"),
        (dict(peft_config=LoraConfig), TypeError, "peft_config must be a peft.PeftConfig such as LoraConfig"),
        (
            dict(peft_config=PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)),
            ValueError,
            "PromptTuningConfig is not supported: it puts virtual tokens before the row",
        ),
        (dict(quantization_config=object()), ValueError, "quantization_config is for a model that is loaded by name"),
        (dict(eval_dataset={"a": 3}), TypeError, r"`eval_dataset\['a'\]` must be a `Dataset`"),
    ],
)
def test_inputs_that_cannot_work_are_refused(tmp_path, changes, error, message):
    inputs = dict(args=vrpo.config(tmp_path), train_dataset=vrpo.PAIRS, processing_class=TOKENIZER)
    with pytest.raises(error, match=message):
        VRPOTrainer(tiny_model(seed=1, **IDS), **(inputs | changes))


@pytest.mark.parametrize(
    "option",
    [
        dict(neftune_noise_alpha=5), dict(truncation_mode="keep_end"), dict(padding_free=True),
        dict(batch_eval_metrics=True), dict(eval_do_concat_batches=False), dict(trust_remote_code=True),
        dict(use_liger_kernel=True), dict(pad_to_multiple_of=0), dict(ld_alpha=1.5), dict(activation_offloading=True),
        dict(sync_ref_model=True, precompute_ref_log_probs=True),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused_by_name(tmp_path, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        vrpo.config(tmp_path, **option)


def test_a_collator_without_the_needed_keys_is_named(tmp_path):
    run = VRPOTrainer(
        tiny_model(seed=1, **IDS), args=vrpo.config(tmp_path), train_dataset=vrpo.PAIRS, processing_class=TOKENIZER,
        data_collator=lambda rows: {"input_ids": torch.zeros(2, 3)},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"data_collator .* without .*'response_mask'"):
        run.train()


def test_reference_scores_are_not_precomputed_for_streams(tmp_path):
    run = vrpo.trainer(tmp_path, precompute_ref_log_probs=True, max_steps=2)
    stream = Dataset.from_list(vrpo.PAIRS).to_iterable_dataset()
    with pytest.raises(ValueError, match="precompute_ref_log_probs=True is not supported with IterableDataset"):
        run.evaluate({"stream": stream})
    with pytest.raises(ValueError, match="precompute_ref_log_probs=True is not supported with IterableDataset"):
        vrpo.trainer(tmp_path, rows=stream, precompute_ref_log_probs=True, max_steps=2)


def test_batches_are_padded_to_a_multiple_that_changes_nothing(tmp_path):
    padded = sft.trainer(tmp_path, max_steps=2, pad_to_multiple_of=32)
    assert vrpo.first_batch(padded)["input_ids"].shape[1] % 32 == 0
    assert (trajectory(padded) - trajectory(sft.trainer(tmp_path, max_steps=2))).abs().max() <= 1e-12


def test_a_list_has_the_columns_of_all_its_rows_and_a_stream_without_rows_is_named():
    rows = as_datasets([{"prompt": "a"}, {"prompt": "b", "tools": "[]"}], "train_dataset")
    assert rows.column_names == ["prompt", "tools"]
    with pytest.raises(DataError, match="train_dataset has no rows"):
        as_datasets(IterableDataset.from_generator(lambda: iter(())), "train_dataset")


def test_a_moved_reference_is_not_resumed(tmp_path):
    settings = dict(max_steps=2, sync_ref_model=True, ref_model_sync_steps=1, save_strategy="steps", save_steps=1)
    vrpo.trainer(tmp_path, **settings).train()
    with pytest.raises(ValueError, match="a run with sync_ref_model cannot be resumed"):
        vrpo.trainer(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_overwrite_does_not_delete_the_model_that_the_run_starts_from(tmp_path):
    for folder in ("run/checkpoint-3", "base"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(RecipeError, match="overwrite would delete the model"):
        refuse_to_delete(str(tmp_path / "run" / "checkpoint-3"), str(tmp_path / "run"))
    refuse_to_delete(str(tmp_path / "base"), str(tmp_path / "run"))


@pytest.mark.parametrize("streamed", [False, True])
def test_each_evaluation_set_is_evaluated_on_its_own_rows(tmp_path, streamed):
    """The Trainer keeps the loader of the first set where workers persist, and groups by a column that lists lack."""
    sets = {"one": Dataset.from_list(vrpo.PAIRS[:3]), "two": Dataset.from_list(vrpo.PAIRS[4:8])}
    expected = {name: vrpo.trainer(tmp_path).evaluate(rows)["eval_loss"] for name, rows in sets.items()}
    sets = {name: rows.to_iterable_dataset() for name, rows in sets.items()} if streamed else sets
    settings = dict(dataloader_num_workers=1, dataloader_persistent_workers=True)
    run = vrpo.trainer(tmp_path, eval_dataset=sets, train_sampling_strategy="group_by_length", **settings)
    metrics = run.evaluate()
    assert {name: metrics[f"eval_{name}_loss"] for name in sets} == pytest.approx(expected, abs=1e-12)
    assert expected["one"] != pytest.approx(expected["two"], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_flawed_rows_trains_nothing_and_says_so(tmp_path, kind):
    rows = Dataset.from_list([row | {"prompt": 3} for row in ROWS[kind]]).to_iterable_dataset()
    settings = dict(drop_invalid=True, max_steps=2)
    with pytest.raises(RuntimeError, match="trained no step: .* drop_invalid and drop_overlong left no row"):
        KINDS[kind].trainer(tmp_path, rows=rows, **settings).train()


def test_padding_does_not_set_the_length_of_a_batch(tmp_path):
    """With eos_tail="batch" a padding row that is longer than the batch would lengthen the EOS tails of its rows."""
    run = sft.trainer(tmp_path, rows=[{"prompt": "q", "completion": "long " * 8}, *sft.PAIRS[:3]], eos_tail="batch")
    long, *short = (run.train_dataset[index] for index in range(4))
    padded = run.data_collator([*short, long | {PADDING: True}])
    assert padded["row_weight"].tolist() == [1, 1, 1, 0]
    alone = run.data_collator(short)
    assert all(torch.equal(padded[key][:3], alone[key]) for key in alone)


def test_a_reference_given_by_name_is_loaded_like_the_model(tmp_path):
    tiny_model(seed=1, dtype=torch.float32, **IDS).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    name = str(tmp_path / "model")
    args = vrpo.config(tmp_path, model_init_kwargs={"attn_implementation": "eager", "torch_dtype": "bfloat16"})
    run = VRPOTrainer(name, name, args=args, train_dataset=vrpo.PAIRS)
    for model in (run.model, run.ref_model):
        assert (model.config._attn_implementation, model.dtype) == ("eager", torch.bfloat16)


def test_quantized_weights_need_adapters_which_a_directory_of_adapters_has(tmp_path, monkeypatch):
    base = tiny_model(seed=1, dtype=torch.float32, **IDS)
    base.save_pretrained(tmp_path / "base")
    wrap_with_adapters(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(r=2)).save_pretrained(
        tmp_path / "adapters"
    )
    given = {}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name, **options: given.update(options) or base)
    with pytest.raises(ValueError, match="quantization_config freezes the weights: train adapters"):
        load(str(tmp_path / "base"), None, False, "eight bits")
    assert any(
        weight.requires_grad for weight in load(str(tmp_path / "adapters"), None, False, "eight bits").parameters()
    )
    assert given == {"quantization_config": "eight bits", "dtype": "auto", "trust_remote_code": False}
