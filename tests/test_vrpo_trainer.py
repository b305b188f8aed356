"""The preference trainer: exact gradients, equal trajectories, references, metrics, and refusals."""

import copy
import dataclasses
import json
import time

import pytest
import torch
from conftest import Recording, tiny_model, trajectory, two_processes
from datasets import Dataset
from peft import LoraConfig
from test_sft import IDS, TOKENIZER

from llada.diffusion.random_streams import EVALUATION
from vrpo import VRPOConfig, VRPOTrainer
from vrpo.data import prepare_pairs
from vrpo.scores import PairScores

WORDS = ["yes", "no way", "maybe so", "never", "of course", "it is", "a while", "all of it"]
PAIRS = [
    {"prompt": f"{index}? ", "chosen": word, "rejected": WORDS[(index - 1) % 8] + "!"}
    for index, word in enumerate(WORDS * 2)
]


class Recorded(Recording, VRPOTrainer):
    pass


def config(tmp_path, **changes) -> VRPOConfig:
    settings = dict(
        output_dir=str(tmp_path), max_steps=20, per_device_train_batch_size=8, gradient_accumulation_steps=1,
        learning_rate=1e-3, warmup_steps=2, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
        dataloader_drop_last=True, disable_tqdm=True, optim="adamw_torch", seed=3, n_t=3,
    )  # fmt: skip
    return VRPOConfig(**(settings | changes))


def trainer(tmp_path, dtype=torch.float64, rows=PAIRS, model=None, **changes) -> Recorded:
    names = ("eval_dataset", "peft_config", "ref_model")
    extra = {key: changes.pop(key) for key in names if key in changes}
    model = tiny_model(seed=1, dtype=dtype, **IDS) if model is None else model
    return Recorded(
        model,
        args=config(tmp_path, **changes),
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        processing_class=TOKENIZER,
        **extra,
    )


def moved(run: VRPOTrainer, scale: float = 0.05) -> VRPOTrainer:
    """The same trainer with its policy away from its reference."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return run


def first_batch(run: VRPOTrainer) -> dict[str, torch.Tensor]:
    return next(iter(run.get_train_dataloader()))


def test_the_score_starts_at_exactly_zero_and_the_loss_at_log_two(tmp_path):
    run = trainer(tmp_path, loss_type=["sigmoid"], loss_weights=[1.0])
    batch = first_batch(run)
    with torch.no_grad():
        scores = run.scores(run.denoiser(run.model), batch, epoch=0)
        loss = run.compute_loss(run.model, batch)
    assert torch.equal(scores.policy.joined(), scores.reference.joined())
    assert loss.item() == pytest.approx(0.6931471805599453, abs=1e-15)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("loss", ["sigmoid", "robust", "ipo", "hinge"])
def test_the_replayed_gradient_is_that_of_the_full_graph(tmp_path, loss, shared):
    """Every loss with the SFT term, n = 3 draws, a policy away from its reference: 1e-12 in float64."""
    settings = dict(loss_type=[loss, "sft"], loss_weights=[1.0, 0.05], label_smoothing=0.1)
    settings |= dict(estimator_options={"shared_masks": shared})
    full, replayed = (moved(trainer(tmp_path, **settings)) for _ in range(2))
    batch = first_batch(full)
    loss_full = full.compute_loss(full.model, batch)
    loss_full.backward()
    replayed.current_gradient_accumulation_steps = 1
    loss_replayed = replayed.training_step(replayed.model, batch)
    assert loss_replayed.item() == pytest.approx(loss_full.item(), abs=1e-12)
    pairs = zip(full.model.parameters(), replayed.model.parameters(), strict=True)
    gradients = [(a.grad, b.grad) for a, b in pairs]
    assert max((a - b).abs().max().item() for a, b in gradients) <= 1e-12
    assert max(a.abs().max().item() for a, _ in gradients) > 1e-4


PRECISIONS = [(torch.float64, 1e-10), pytest.param(torch.float32, 1e-5, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
def test_accumulation_of_eight_single_pairs_equals_one_batch_of_eight(tmp_path, dtype, bound):
    whole = trajectory(trainer(tmp_path, dtype))
    split = trajectory(trainer(tmp_path, dtype, per_device_train_batch_size=1, gradient_accumulation_steps=8))
    assert whole.shape == split.shape == (20, 2)
    assert (whole - split).abs().max() <= bound


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
def test_resumed_equals_uninterrupted(tmp_path, dtype, bound):
    """The reference is the model that is passed in, not the checkpoint, which has moved on."""
    whole = trajectory(trainer(tmp_path / "whole", dtype))
    trajectory(trainer(tmp_path / "cut", dtype, save_strategy="steps", save_steps=10))
    resumed = trajectory(
        trainer(tmp_path / "cut", dtype),
        resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-10"),
    )
    assert (whole[10:] - resumed).abs().max() <= bound


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS)
def test_two_processes_equal_one(tmp_path, dtype, bound):
    """Two processes with two micro-batches of two pairs: the Trainer's no_sync around ours."""
    whole = trajectory(trainer(tmp_path, dtype))
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    split = two_processes(tmp_path, "test_vrpo_trainer", dtype, **settings)
    assert (whole - split).abs().max() <= bound


def test_adapters_off_is_the_frozen_copy(tmp_path):
    """LoRA with the reference by adapters off, and with a second model: the same 20 steps, to 1e-10."""
    lora = LoraConfig(r=2, lora_dropout=0.1, init_lora_weights=True)
    runs = []
    for reference in (None, tiny_model(seed=1, **IDS)):
        torch.manual_seed(5)
        runs.append(trajectory(trainer(tmp_path, peft_config=lora, ref_model=reference)))
    assert (runs[0] - runs[1]).abs().max() <= 1e-10
    assert runs[0][0, 0] != runs[0][-1, 0]


def test_draws_of_chosen_and_rejected_are_not_shared(tmp_path):
    rows = [{"prompt": "q", "chosen": "abcdefgh", "rejected": "stuvwxyz"}] * 8
    run = trainer(tmp_path, rows=rows, n_t=16)
    scores = run.scores(run.denoiser(run.model), first_batch(run), epoch=0)
    chosen, rejected = scores.draws.masked_SBL.chunk(2, 1)
    assert not torch.equal(chosen, rejected)


def test_metrics_are_what_they_say(tmp_path):
    """By hand from the draws: rewards are beta times log-ratios, logps are ELBOs, masked_fraction counts tokens."""
    run = moved(trainer(tmp_path, beta=0.5), 0.3)
    batch = first_batch(run)
    with torch.no_grad():
        scores = run.scores(run.denoiser(run.model), batch, epoch=0)
    metrics = run.metrics_of(scores, batch)
    policy_SB, reference_SB = scores.policy.joined(), scores.reference.joined()
    ratio = (policy_SB - reference_SB).mean(0)
    assert torch.allclose(metrics["rewards/chosen"], 0.5 * ratio[:8], atol=1e-12)
    assert torch.allclose(metrics["rewards/margins"], 0.5 * (ratio[:8] - ratio[8:]), atol=1e-12)
    assert torch.equal(metrics["rewards/accuracies"], (ratio[:8] > ratio[8:]).double())
    assert torch.allclose(metrics["logps/rejected"], policy_SB.mean(0)[8:], atol=1e-12)
    share = (scores.draws.masked_SBL.sum(-1).double().mean(0) / batch["response_mask"].sum(-1)).view(2, 8).mean(0)
    assert torch.allclose(metrics["masked_fraction"], share, atol=1e-12)
    spread = (policy_SB - reference_SB).var(0) / 3
    assert torch.allclose(metrics["score/variance"], 0.25 * (spread[:8] + spread[8:]), atol=1e-12)
    dependent = trainer(tmp_path, n_y=2)
    other = dependent.scores(dependent.denoiser(dependent.model), batch, epoch=0)
    assert "score/variance" not in dependent.metrics_of(other, batch)


def test_logged_and_evaluated_metrics_have_trl_s_names(tmp_path):
    run = trainer(tmp_path, max_steps=2, eval_dataset=Dataset.from_list(PAIRS[:5]), per_device_eval_batch_size=2)
    run.train()
    logged = next(row for row in run.state.log_history if "loss" in row)
    names = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"}
    assert names | {"logps/rejected", "masked_fraction", "score/saturated", "score/variance"} <= set(logged)
    evaluated = run.evaluate()
    assert {f"eval_{name}" for name in names | {"loss"}} <= set(evaluated)
    rows = [
        trainer(tmp_path, eval_dataset=Dataset.from_list(PAIRS[:5]), per_device_eval_batch_size=size).evaluate()
        for size in (1, 5)
    ]
    assert rows[0]["eval_logps/chosen"] == pytest.approx(rows[1]["eval_logps/chosen"], abs=1e-10)


def test_reporters_receive_the_metrics(tmp_path, monkeypatch):
    """tensorboard's event file and wandb's offline record hold the names."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    trainer(tmp_path, max_steps=2, report_to=["tensorboard", "wandb"]).train()
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").rglob("events*"))
    import wandb

    wandb.finish()
    record, patience = b"", time.monotonic() + 30  # its service writes the file, and may be late on a busy machine
    while b"score/variance" not in record and time.monotonic() < patience:
        record = b"".join(path.read_bytes() for path in tmp_path.rglob("*.wandb"))
    for name in (b"rewards/margins", b"score/variance"):
        assert name in events
        assert name in record


def test_alignment_learns_the_preference(tmp_path):
    """60 steps on 16 pairs: every chosen answer ends above its rejected one, by more than a nat of reward."""
    run = trainer(tmp_path, torch.float32, max_steps=60, learning_rate=3e-3, eval_dataset=Dataset.from_list(PAIRS))
    run.train()
    metrics = run.evaluate()
    assert metrics["eval_rewards/accuracies"] == 1.0
    assert metrics["eval_rewards/margins"] > 1


def pairs(*rows) -> Dataset:
    return Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])


def prepare(dataset, **changes):
    from llada.data.tokenizer import special_ids

    return prepare_pairs(dataset, TOKENIZER, special_ids(TOKENIZER), changes.pop("max_length", 64), **changes)


def test_explicit_implicit_and_conversational_prompts_agree():
    """TRL's formats: prompt column, common beginning of two texts, messages, implicit messages with a system turn."""
    system = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("a", "b")]
    explicit = prepare(
        Dataset.from_list([{"prompt": system, "chosen": answers[0], "rejected": answers[1]}]), max_length=300
    )
    implicit = prepare(
        Dataset.from_list([{"chosen": system + answers[0], "rejected": system + answers[1]}]), max_length=300
    )
    assert explicit[0] == implicit[0]
    assert TOKENIZER.decode(explicit[0]["chosen_ids"]) == "a<|eot_id|>"
    text = prepare(Dataset.from_list([{"chosen": "q: yes", "rejected": "q: no"}]))
    assert [TOKENIZER.decode(text[0][f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")] == [
        "q:",
        " yes",
        " no",
    ]


def test_ids_tell_pairs_apart_and_not_their_order():
    rows = prepare(pairs(("q", "a", "b"), ("q", "b", "a"), ("q", "a", "c"), ("q", "a", "b")))
    ids = rows["example_id"]
    assert ids[0] == ids[3]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            Dataset.from_list([{"prompt": "q", "chosen": "a"}]),
            r"columns are \['chosen', 'prompt'\]; needed are 'prompt'",
        ),
        (pairs(("", "a", "b")), "1 row has an empty 'prompt': row 0 "),
        (pairs(("q", "a", "b"), ("q", "", "b")), "1 row has an empty 'chosen': row 1 "),
        (pairs(("q", "a", "")), "1 row has an empty 'rejected': row 0 "),
        (pairs(("q", None, "b")), "1 row has no value in 'chosen': row 0 "),
        (
            pairs(("q", "a", "a"), ("q", "a", "b"), ("q", "c", "c")),
            r"2 rows have identical 'chosen' and 'rejected' \(set allow_identical to keep them\): rows 0, 2 ",
        ),
        (
            pairs(("q" * 63, "a", "b")),
            "a prompt that leaves no room for an answer in 63 tokens .*: row 0 .*: 63 tokens\nRaise",
        ),
        (
            pairs(("q", "a" * 80, "b")),
            "1 row is longer than 63 tokens .*row 0: 81 tokens\nRaise max_length, or set drop_overlong",
        ),
        (pairs(("q", "<|mdm_mask|>", "b")), "1 row has text in 'chosen' that spells the mask token: row 0 "),
        (pairs(("<|mdm_mask|>", "a", "b")), "1 row has text in 'prompt' that spells the mask token: row 0 "),
    ],
)
def test_bad_pairs_are_named_by_source_row_and_column(dataset, message):
    with pytest.raises(ValueError, match=f"(?s)^pairs.jsonl.*{message}"):
        prepare(dataset, source="pairs.jsonl")


def test_streamed_pairs_are_the_rows_of_the_whole_dataset():
    whole = pairs(*[(f"q{index}", f"a{index}", f"b{index}") for index in range(5)])
    assert list(prepare(whole.to_iterable_dataset())) == list(prepare(whole))
    with pytest.raises(ValueError, match="1 row has identical"):
        list(prepare(pairs(("q", "a", "a")).to_iterable_dataset()))


def test_references_that_cannot_be_are_refused(tmp_path):
    model = tiny_model(seed=1, **IDS)
    with pytest.raises(ValueError, match="ref_model is the model itself"):
        trainer(tmp_path, model=model, ref_model=model)
    with pytest.raises(ValueError, match="another vocabulary: embedding_size is 270, and 262 in the model"):
        trainer(tmp_path, ref_model=tiny_model(**(IDS | {"embedding_size": 270})))
    first = trainer(tmp_path, peft_config=LoraConfig(r=2))
    with pytest.raises(ValueError, match=r"has adapters already and peft_config asks for new ones: merge them"):
        trainer(tmp_path, model=first.model, peft_config=LoraConfig(r=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "best"}, "estimator='best' is unknown: it must be one of"),
        ({"disable_dropout": False}, "disable_dropout=False is refused"),
        ({"beta": 0.0}, "beta=0.0 must be positive"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5 must be at least 0 and below 0.5"),
        ({"loss_type": ["dpo"], "loss_weights": [1.0]}, "loss_type='dpo' is unknown"),
        ({"loss_weights": [1.0]}, "must have one weight for each"),
        ({"eval_draws": 0}, "eval_draws=0 must be at least 1"),
        ({"n_y": 0}, "n_y=0 must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_a_score_that_is_not_finite_stops_before_the_optimizer(tmp_path):
    """Only row 7's prompt holds the poisoned byte; a score of +inf alone would have loss 0."""
    model = tiny_model(seed=1, **IDS)
    model.model.transformer.wte.weight.data[TOKENIZER.convert_tokens_to_ids("7")] = torch.nan
    before = copy.deepcopy(model.state_dict())
    run = trainer(tmp_path, model=model, ref_model=tiny_model(seed=1, **IDS), per_device_train_batch_size=16)
    with pytest.raises(
        FloatingPointError, match=r"the score is not finite after 0 optimizer steps, for 1 of \d+ .*row 7 "
    ):
        run.train()
    assert all(torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in model.state_dict().items())


def test_losses_are_named_as_in_trl(tmp_path):
    """A string or a list; without weights 1, and the paper's 0.05 for the SFT term."""
    assert config(tmp_path, loss_type="sigmoid").loss_weights == [1.0]
    assert config(tmp_path, loss_type=["ipo", "sft"]).loss_weights == [1.0, 0.05]


def test_the_bias_is_logged_for_losses_that_have_one_to_second_order(tmp_path):
    """A step with WPO's weights, whose bias would need the policy's own noise, and one of another divergence."""
    for options, logged in (({"use_weighting": True}, False), ({"f_divergence_type": "js_divergence"}, True)):
        run = trainer(tmp_path, loss_type=["sigmoid", "sft"], max_steps=1, logging_steps=1, **options)
        run.train()
        assert "score/variance" in run.state.log_history[0]
        assert ("loss/bias" in run.state.log_history[0]) is logged


def test_the_trainer_averages_scores_before_the_log_sigmoid(tmp_path, monkeypatch):
    """Two draws that differ by +10 and -10 nats: the mean score is 0 and the loss log 2, not 1.1269."""
    run = trainer(tmp_path, loss_type=["sigmoid"], n_t=2)
    batch = first_batch(run)
    with torch.no_grad():
        scores = run.scores(run.denoiser(run.model), batch, epoch=0)
    zero = torch.zeros_like(scores.policy.chosen)
    chosen = torch.tensor([[10.0], [-10.0]], dtype=torch.float64).expand_as(zero)
    fixed = dataclasses.replace(scores, policy=PairScores(chosen, zero), reference=PairScores(zero, zero))
    monkeypatch.setattr(run, "scores", lambda *_: fixed)
    assert run.compute_loss(run.model, batch).item() == pytest.approx(0.6931471805599453, abs=1e-12)


def test_evaluation_has_one_design(tmp_path):
    """Naive training draws once and shares no masks; its evaluation shares them and reports a variance."""
    rows = Dataset.from_list(PAIRS[:4])
    run = trainer(tmp_path, estimator="naive_dpo", n_t=None, eval_dataset=rows)
    assert "eval_score/variance" in run.evaluate()
    with torch.no_grad():
        scores = run.scores(run.denoiser(run.model), first_batch(run), EVALUATION)
    assert torch.equal(scores.policy.joined(), scores.reference.joined())
    assert "eval_score/variance" not in trainer(tmp_path, eval_draws=1, eval_dataset=rows).evaluate()


def test_dropout_is_set_to_zero_and_said_so(tmp_path, caplog):
    run = trainer(tmp_path, peft_config=LoraConfig(r=2, lora_dropout=0.1))
    assert "14 dropout layers were set to 0" in caplog.text
    assert not any(module.p for module in run.model.modules() if isinstance(module, torch.nn.Dropout))


def test_adapters_that_do_not_start_at_zero_need_a_reference(tmp_path):
    with pytest.raises(ValueError, match="init_lora_weights=False changes the model before training"):
        trainer(tmp_path, peft_config=LoraConfig(r=2, init_lora_weights=False))


def test_defaults_are_the_paper_s_recipe(tmp_path):
    args = VRPOConfig(output_dir=str(tmp_path), use_cpu=True)
    design = args.design()
    assert (design.n_t, design.n_y, design.shared_masks, design.masks) == (8, 1, True, "exact_count")
    assert (args.beta, args.loss_type, args.loss_weights) == (0.2, ["sigmoid", "sft"], [1.0, 0.05])
    assert (args.learning_rate, args.warmup_steps, args.adam_beta1, args.adam_beta2) == (5e-7, 15, 0.9, 0.95)
    assert args.weight_decay == 0.01
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 64
    assert json.dumps(args.to_dict()["estimator"]) == '"vrpo"'
