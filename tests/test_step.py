"""The gradient of a step by every way, against the naive one; which rows are forwarded, and how often."""

import json
import math
from collections import Counter

import pytest
import test_sft
import torch
from conftest import tiny_model, trajectory
from peft import LoraConfig
from test_sft import IDS
from test_vrpo_trainer import first_batch, moved, trainer

import llada.training.sft
import vrpo.training.plan
from llada import LLaDAModelLM
from llada.denoiser import as_denoiser
from llada.diffusion.forwards import Forward, of_sequence, row_lengths, similar_lengths, whole_batches
from llada.diffusion.likelihood import elbo_draws
from llada.diffusion.masking import MaskDraws
from llada.models.common import head
from llada.models.common.base import MaskedLM

LONG_AND_SHORT = [
    {"prompt": f"{index}? ", "chosen": "yes " * (1 + 3 * (index % 4)), "rejected": "no " * (10 - 3 * (index % 3))}
    for index in range(8)
]
WAYS = {
    "one graph": dict(kept_draws=1),
    "two graphs": dict(kept_draws=2),
    "all graphs": dict(kept_draws=3),
    "buffers": dict(unit_gradients=True),
    "buffers, a forward for three draws": dict(unit_gradients=True, draws_per_forward=3),
    "two graphs, a forward for three draws": dict(kept_draws=2, draws_per_forward=3),
    "chosen by memory": {},
}


def lora(**changes) -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=4, **changes)


def gradients(run) -> list[torch.Tensor]:
    return [parameter.grad for parameter in run.model.parameters() if parameter.requires_grad]


def step(run, batch) -> torch.Tensor:
    run.current_gradient_accumulation_steps = 1
    return run.training_step(run.model, batch)


def test_rows_of_similar_length_go_together():
    assert similar_lengths(range(2), [900, 100], 1800) == [
        Forward((0, 1), (0, 0), 900), Forward((0, 1), (1, 1), 100)
    ]  # fmt: skip
    # A row of 99 tokens adds 0.5% of padding to one of 100, one of 90 would add 3.7%; three rows of 100 exceed 250.
    assert similar_lengths([4], [90, 99, 100], 250) == [Forward((4, 4), (2, 1), 100), Forward((4,), (0,), 90)]
    assert [len(rows) for rows in similar_lengths(range(3), [100], 250)] == [2, 1]
    assert [len(rows) for rows in similar_lengths(range(3), [100], 50)] == [1, 1, 1]
    assert whole_batches([1], [3, 4], 5) == [Forward((1, 1), (0, 1), 5)]
    assert of_sequence(2, 7, range(3), 2) == [Forward((0, 1), (2, 2), 7), Forward((2,), (2,), 7)]
    assert row_lengths(torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]])) == [2, 3, 4]


@pytest.mark.parametrize("tokens", [1, 20, 60, 10_000])
def test_elbos_and_gradients_do_not_depend_on_which_rows_go_together(tokens):
    """Ragged rows with left and right padding, three draws of which one masks nothing: 1e-12 in float64."""
    generator = torch.Generator().manual_seed(0)
    tokens_BL = torch.randint(5, 30, (5, 12), generator=generator)
    attention_BL = torch.zeros(5, 12, dtype=torch.long)
    for row, (begin, end) in enumerate([(0, 12), (0, 5), (2, 9), (0, 5), (0, 1)]):
        attention_BL[row, begin:end] = 1
    masked_SBL = (torch.rand(3, 5, 12, generator=generator) < 0.5) & attention_BL.bool()
    masked_SBL[1] = False
    draws = MaskDraws(masked_SBL, masked_SBL.double() * 1.5)
    forwards = similar_lengths(range(3), row_lengths(attention_BL), tokens)
    assert sorted((s, b) for rows in forwards for s, b in zip(rows.draws, rows.sequences, strict=True)) == [
        (s, b) for s in range(3) for b in range(5)
    ]
    found = []
    for given in (None, forwards):
        model = tiny_model()
        elbos_SB = elbo_draws(as_denoiser(model), tokens_BL, draws, attention_BL, forwards=given)
        elbos_SB.square().sum().backward()
        found.append((elbos_SB.detach(), [parameter.grad for parameter in model.parameters()]))
    assert (found[0][0] - found[1][0]).abs().max() <= 1e-12
    assert max((a - b).abs().max() for a, b in zip(found[0][1], found[1][1], strict=True)) <= 1e-11


def test_the_last_block_computes_only_what_the_head_reads(monkeypatch):
    """Logits, log-probabilities and gradients are those of whole blocks: 1e-12 in float64."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 30, (3, 9), generator=generator)
    attention = torch.ones(3, 9, dtype=torch.long)
    attention[1, 6:] = 0
    targets = torch.where(torch.rand(3, 9, generator=generator) < 0.4, ids, -100)
    targets[2] = -100
    found = []
    for skips in (True, False):
        monkeypatch.setattr(MaskedLM, "last_block_may_skip", skips)
        model = tiny_model()
        log_probs = model(ids, attention, target_ids=targets).log_probs
        log_probs.sum().backward()
        found.append([log_probs.detach(), *(parameter.grad for parameter in model.parameters())])
    assert max((a - b).abs().max() for a, b in zip(*found, strict=True)) <= 1e-12


@pytest.mark.parametrize("chunk", [3, 1024])
def test_a_frozen_head_has_the_gradient_of_a_softmax(monkeypatch, chunk):
    monkeypatch.setattr(head, "CHUNK_ON_CPU", chunk * 11)
    generator = torch.Generator().manual_seed(2)
    weight_VD = torch.randn(11, 4, dtype=torch.float64, generator=generator)
    targets_N, slope_N = torch.randint(0, 11, (7,), generator=generator), torch.randn(7, generator=generator).double()
    hidden_ND = torch.randn(7, 4, dtype=torch.float64, generator=generator).requires_grad_()
    naive_N = (hidden_ND @ weight_VD.T).log_softmax(-1).gather(-1, targets_N[:, None])[:, 0]
    found_N = head.chunked_log_probs(hidden_ND, targets_N, weight_VD)
    assert (found_N - naive_N).abs().max() <= 1e-13
    naive, ours = (torch.autograd.grad(values_N, hidden_ND, slope_N)[0] for values_N in (naive_N, found_N))
    assert (naive - ours).abs().max() <= 1e-13
    nothing = head.chunked_log_probs(hidden_ND[:0], targets_N[:0], weight_VD)
    assert torch.autograd.grad(nothing.sum(), hidden_ND)[0].abs().sum() == 0


@pytest.mark.parametrize(
    ("way", "weights", "loss"),
    [
        *((way, weights, "sigmoid") for way in WAYS for weights in ("all", "lora")),
        *(("buffers", "all", loss) for loss in ("ipo", "bco_pair", "hinge", "nca_pair")),
    ],
)
def test_every_way_gives_the_gradient_of_one_graph(tmp_path, way, weights, loss):
    """With the SFT term, responses of 3 to 40 tokens, a policy away from its reference, and a former gradient."""
    settings = dict(loss_type=[loss, "sft"], loss_weights=[1.0, 0.05], rows=LONG_AND_SHORT)
    settings |= {} if weights == "all" else {"peft_config": lora()}
    naive = moved(trainer(tmp_path, **settings))
    other = moved(trainer(tmp_path, **(settings | WAYS[way])))
    batch = first_batch(naive)
    loss_of_graph = naive.compute_loss(naive.model, batch)
    loss_of_graph.backward()
    for parameter in other.model.parameters():
        parameter.grad = torch.full_like(parameter, 0.25) if parameter.requires_grad else None
    assert step(other, batch).item() == pytest.approx(loss_of_graph.item(), abs=1e-12)
    pairs = list(zip(gradients(naive), gradients(other), strict=True))
    assert max((a + 0.25 - b).abs().max() for a, b in pairs) <= 1e-11
    assert max(a.abs().max() for a, _ in pairs) > 1e-4


CHECKPOINTED = dict(gradient_checkpointing=True)
QUICK = [dict(unit_gradients=True), dict(kept_draws=3)]
ALL = [*WAYS.values(), CHECKPOINTED, CHECKPOINTED | dict(unit_gradients=True)]


@pytest.mark.parametrize(
    ("weights", "ways"),
    [("all", QUICK), *(pytest.param(weights, ALL, marks=pytest.mark.slow) for weights in ("all", "lora"))],
    ids=["quick", "all", "lora"],
)
def test_twenty_steps_are_the_same_by_every_way(tmp_path, weights, ways):
    settings = dict(rows=LONG_AND_SHORT, per_device_train_batch_size=4)
    settings |= {} if weights == "all" else {"peft_config": lora()}
    expected = trajectory(trainer(tmp_path, kept_draws=1, **settings))
    for way in ways:
        assert (expected - trajectory(trainer(tmp_path, **(settings | way)))).abs().max() <= 1e-10, way


def rows_forwarded(run, batch) -> Counter:
    """How many rows the policy forwards in a step, with a graph and without."""
    found: Counter = Counter()

    def count(module, args, kwargs):
        found["graph" if torch.is_grad_enabled() else "none"] += len(kwargs["input_ids"])

    hook = run.model.register_forward_pre_hook(count, with_kwargs=True)
    step(run, batch)
    hook.remove()
    return found


def test_no_row_is_forwarded_that_need_not_be(tmp_path):
    """Eight pairs and three draws are 48 rows, which are forwarded once by buffers and where all graphs are kept."""
    for changes, expected in (
        (dict(kept_draws=1), {"none": 32, "graph": 48}),
        (dict(kept_draws=2), {"none": 16, "graph": 48}),
        (dict(kept_draws=3), {"graph": 48}),
        (dict(unit_gradients=True), {"graph": 48}),
        (dict(n_t=1), {"graph": 16}),
    ):
        run = trainer(tmp_path, rows=LONG_AND_SHORT, variance_steps=0, **changes)
        assert rows_forwarded(run, first_batch(run)) == expected, changes


def test_the_way_follows_from_the_free_memory(tmp_path, monkeypatch, capsys):
    """A batch's graphs are about 3 MB a draw, buffers of all parameters 0.5 MB."""
    found = {}
    for free in (10**15, 10**8, 10**5):
        monkeypatch.setattr(vrpo.training.plan, "free_memory", lambda device, free=free: free)
        monkeypatch.setattr(vrpo.training.plan, "total_memory", lambda device, free=free: free)
        run = trainer(tmp_path, rows=LONG_AND_SHORT)
        step(run, first_batch(run))
        found[free] = (run.plan.unit_gradients, run.plan.kept_draws(3, first_batch(run)["input_ids"].numel()))
    assert found == {10**15: (False, 3), 10**8: (True, 1), 10**5: (False, 1)}


def test_a_resumed_run_keeps_its_way(tmp_path, monkeypatch):
    """With another amount of free memory it would choose another one, and round otherwise."""
    settings = dict(rows=LONG_AND_SHORT, save_strategy="steps", save_steps=2)
    trainer(tmp_path, max_steps=2, **settings).train()
    saved = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert "GradientPlan" in saved
    monkeypatch.setattr(vrpo.training.plan, "free_memory", lambda device: 0)
    again = trainer(tmp_path, max_steps=4, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.plan.state() == saved["GradientPlan"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(ld_alpha=0.5), "not possible with ld_alpha"),
        (dict(loss_type=["aot"], loss_weights=None), "not possible with loss_type aot"),
    ],
)
def test_buffers_that_cannot_be_used_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, unit_gradients=True, **changes)


def test_sft_forwards_rows_of_similar_length_with_the_same_gradient(tmp_path, monkeypatch):
    """Eight rows of three lengths: fewer tokens are forwarded than the padded batch has."""
    rows = [{"prompt": "? ", "completion": "yes " * (1 + 4 * (index % 3))} for index in range(8)]
    found, tokens = [], []
    for whole in (False, True):
        if whole:
            monkeypatch.setattr(llada.training.sft, "forwards_of", lambda *args: None)
        run = test_sft.trainer(tmp_path, rows=rows)
        sizes: list[int] = []
        run.model.register_forward_pre_hook(
            lambda module, args, kwargs, sizes=sizes: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        loss = run.compute_loss(run.model, first_batch(run))
        loss.backward()
        found.append([loss.detach(), *gradients(run)])
        tokens.append(sum(sizes))
    assert tokens[0] < 0.75 * tokens[1]
    assert max((a - b).abs().max() for a, b in zip(*found, strict=True)) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_of_a_quantized_model_take_the_same_steps_by_every_way(tmp_path, bits):
    """QLoRA on the CPU. The reference is the quantized model with its adapters off: step 0 has the loss log 2."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    options = dict(bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32) if bits == 4 else {}
    quantization = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, **options)
    tiny_model(seed=1, dtype=torch.float32, d_model=64, mlp_hidden_size=128, **IDS).save_pretrained(tmp_path / "model")

    def steps(**changes) -> torch.Tensor:
        model = LLaDAModelLM.from_pretrained(tmp_path / "model", quantization_config=quantization)
        assert sum(f"{bits}bit" in type(module).__name__ for module in model.modules()) == 14
        settings = dict(peft_config=lora(), loss_type=["sigmoid"], loss_weights=[1.0], rows=LONG_AND_SHORT)
        return trajectory(trainer(tmp_path, torch.float32, model=model, **(settings | changes)))

    expected = steps(kept_draws=1)
    assert expected[0, 0] == pytest.approx(math.log(2), abs=1e-7)
    assert expected[-1, 0] < 0.9 * expected[0, 0]
    assert (steps(unit_gradients=True) - expected).abs().max() <= 1e-3 * expected.abs().max()
