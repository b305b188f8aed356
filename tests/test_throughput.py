"""Numbers of a run while it runs: exact values with a clock that the test sets, operations against torch's counter."""

import pytest
import test_sft
import test_vrpo_trainer
import torch
from conftest import tiny_config, tiny_model, tiny_moe
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from llada import LLaDAModelLM
from llada.models.common.flops import MatrixSizes, work
from llada.training import stopwatch, throughput
from llada.training.stopwatch import EVALUATION, KEPT, CudaClock, HostClock, Stopwatch
from llada.training.throughput import MEASURED, Throughput, peak_flops

CPU = torch.device("cpu")
EXAMPLE = MatrixSizes(trained=100, frozen=0, head=40, head_trained=True, attention=8)  # the docstring's
MODULES = {"rows": test_sft, "pairs": test_vrpo_trainer}


class SetClock(HostClock):
    """A clock that shows what the test sets."""

    time = 0.0

    def now(self) -> float:
        return self.time


class Ticking(HostClock):
    """A clock that is one second later each time it is read."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        self.time += 1
        return self.time


class Processes:
    """What a process sees of accelerate where the numbers of others are given, [1, N] each."""

    device = CPU

    def __init__(self, *others: torch.Tensor):
        self.others, self.mine = others, torch.zeros(0)

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        self.mine = mine
        return torch.cat([mine, *self.others])


def measured(unit="pairs", sizes=None, peak=None) -> Throughput:
    return Throughput(unit, CPU, sizes, peak, SetClock())


def train(run: Throughput, rows: int, tokens: int, seconds: float) -> None:
    """A step of `rows` pairs whose responses have `tokens` tokens together: a quarter is data, a half the policy."""
    clock = run.stopwatch.clock
    with run.phase("data"):
        clock.time += seconds / 4
    with run.phase("policy"):
        attention = torch.zeros(2 * rows, tokens, dtype=torch.long)
        attention[0] = 1
        run.count(attention, torch.ones(rows))
        clock.time += seconds / 4
        with run.phase("reference"):
            clock.time += seconds / 8
        clock.time += seconds / 4
    clock.time += seconds / 8


def test_rates_and_shares_of_the_time_since_the_last_line():
    run = measured()
    run.stopwatch.clock.time = 70.0  # before the first batch nothing is measured
    train(run, rows=3, tokens=40, seconds=8.0)
    shares = {"time/reference": 0.125, "time/policy": 0.5, "time/data": 0.25, "time/other": 0.125}
    line = run.line(Processes())
    assert line.pop("memory/peak_gib") > 0.01
    assert line == {"throughput/tokens_per_second": 5.0, "throughput/pairs_per_second": 0.375} | shares
    assert run.line(Processes()) == {}  # no step since
    train(run, rows=3, tokens=40, seconds=4.0)
    train(run, rows=1, tokens=20, seconds=4.0)
    assert run.line(Processes())["throughput/pairs_per_second"] == 0.5


def test_rows_that_fill_up_a_batch_do_not_count():
    run = measured()
    with run.phase("policy"):
        run.count(torch.ones(4, 10), torch.tensor([1.0, 0.0]))  # two pairs, the second one is padding
        run.stopwatch.clock.time = 2.0
    line = run.line(Processes())
    assert (line["throughput/pairs_per_second"], line["throughput/tokens_per_second"]) == (0.5, 10.0)


def test_two_processes_are_added_up():
    """The example of the docstring: 8 pairs, 3,000 tokens and 4 x 10^12 operations in 4 s, of 10^12 a second each."""
    first, second = (measured(sizes=EXAMPLE, peak=1e12) for _ in range(2))
    for run, rows, tokens, operations in ((first, 5, 1000, 1e12), (second, 3, 2000, 3e12)):
        train(run, rows, tokens, 4.0)
        run.policy = torch.tensor([operations / 600, 0, 0], dtype=torch.float64)  # 200 forward, 400 backward
    alone = Processes()
    second.line(alone)
    line = first.line(Processes(alone.mine))
    assert line["throughput/pairs_per_second"] == 2
    assert line["throughput/tokens_per_second"] == 750
    assert line["throughput/mfu"] == pytest.approx(0.5, rel=1e-12)
    assert sum(value for name, value in line.items() if name.startswith("time/")) == pytest.approx(1, abs=1e-12)


def test_the_worked_example_of_operations():
    """A row of 3 tokens, 2 masked: 1048 forward, 2096 backward, 1048 for the reference; in 1 s of 10,480 a second."""
    run = measured(sizes=EXAMPLE, peak=10480.0)
    masked = torch.tensor([[[False, True, True]]])
    inputs = {"attention_mask": torch.ones(1, 3, dtype=torch.long), "row_weight": torch.ones(1)}
    with run.phase("policy"):
        run.count(inputs["attention_mask"], inputs["row_weight"])
        run.count_work(inputs, masked, masked)
        run.stopwatch.clock.time = 1.0
    assert (EXAMPLE.forward(run.policy), EXAMPLE.backward(run.policy)) == (1048, 2096)
    assert run.line(Processes())["throughput/mfu"] == pytest.approx(0.4, rel=1e-12)


def test_work_leaves_out_padding_and_other_segments():
    attention = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    masked = torch.zeros(2, 3, 6, dtype=torch.bool)
    masked[0, 0, :2] = masked[1, 1, 0] = masked[1, 2, 0] = True
    weight = torch.tensor([1.0, 1.0, 0.0])  # the last row only fills up the batch
    assert work(attention, masked, weight).tolist() == [2 * 8, 2 * (25 + 9), 3]
    segments = torch.tensor([[4, 4, 7, 7, 7, 7], [1, 2, 1, 1, 1, 1], [0] * 6])
    assert work(attention, masked, weight, segments).tolist() == [2 * 8, 2 * (4 + 9 + 1 + 1 + 1), 3]


@pytest.mark.parametrize("tied", [False, True])
def test_operations_are_those_that_torch_counts(tied):
    """With all tokens masked: else the last block skips queries that are not scored, which the formula does not."""
    model = LLaDAModelLM(tiny_config(weight_tying=tied, attn_implementation="eager")).train()
    ids = torch.randint(3, 30, (3, 11))
    found, masked = MatrixSizes.of(model), torch.ones(1, 3, 11, dtype=torch.bool)
    row = work(torch.ones_like(ids), masked, torch.ones(3))
    with FlopCounterMode(display=False) as counter:
        loss = model(torch.full_like(ids, 39), target_ids=ids).log_probs.sum()
    assert counter.get_total_flops() == found.forward(row)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == found.backward(row)


def test_adapters_are_what_is_trained_and_the_reference_has_none():
    """32 wide, 16 for keys and values, 48 inner, 2 blocks; adapters of rank 2 on queries and keys."""
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "k_proj"]))
    block = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 48
    adapters = 2 * 2 * (32 + 32 + 32 + 16)
    found = MatrixSizes.of(model)
    assert found == MatrixSizes(adapters, 2 * block, 40 * 32, False, 64, adapters=True)
    one = torch.tensor([1.0, 0.0, 0.0])
    assert found.forward(one) - found.forward(one, reference=True) == 2 * adapters
    assert found.backward(one) == 2 * (2 * block + 2 * adapters)


def test_of_experts_those_that_a_token_chooses_are_counted():
    model = tiny_moe()
    expert, attention = 3 * 32 * 24, 4 * 32 * 32
    assert MatrixSizes.of(model) == MatrixSizes(2 * (2 * expert + attention + 4 * 32), 0, 40 * 32, True, 64)
    rest = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." not in name)
    assert model.active_parameters() == rest + 2 * 2 * expert
    assert MatrixSizes.of(torch.nn.Linear(2, 2)) is None


NAMES = {
    "NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12,
    "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA A100-SXM4-40GB MIG 1g.5gb": None, "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12, "NVIDIA A10": 125e12, "NVIDIA A10G": None, "NVIDIA H20": None, "NVIDIA GB200": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None, "Tesla V100-SXM2-16GB": None,
}  # fmt: skip


def test_the_peak_is_known_by_name_or_not_at_all(monkeypatch):
    for name, peak in NAMES.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda")) == peak, name
    assert peak_flops(CPU) is None


def test_old_points_in_time_are_not_kept():
    watch = Stopwatch(Ticking())
    for _ in range(2 * KEPT):
        with watch.phase("policy"):
            pass
        assert len(watch.begins) <= KEPT
    assert watch.lap() == {"policy": 2 * KEPT, "other": 2 * KEPT}


def test_an_evaluation_keeps_the_time_of_phases_inside():
    watch = Stopwatch(Ticking())
    with watch.phase(EVALUATION), watch.phase("reference"):
        pass
    assert watch.lap() == {EVALUATION: 3, "other": 1}


def test_on_a_gpu_nothing_waits_before_a_line_is_due(monkeypatch):
    """Events that tell when the GPU came by, here 2 s apart in its own milliseconds."""
    waited = []

    class Event:
        times = iter(range(0, 100_000, 2000))

        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self):
            self.time = next(self.times)

        def synchronize(self):
            waited.append(self.time)

        def elapsed_time(self, end) -> float:
            return float(end.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = Stopwatch(stopwatch.clock_of(torch.device("cuda")))
    assert isinstance(watch.clock, CudaClock)
    with watch.phase("data"):
        pass
    assert not waited
    assert watch.lap() == {"data": 2.0, "other": 2.0}


def trained(unit: str, tmp_path, monkeypatch, resume=None, **options):
    """A run with the clock `Ticking`, whose log lines that have numbers of the run are returned with their step."""
    monkeypatch.setattr(throughput, "clock_of", lambda device: Ticking())
    run = MODULES[unit].trainer(tmp_path, **options)
    run.train(resume_from_checkpoint=resume)
    return run, [line for line in run.state.log_history if any(name.startswith(MEASURED) for name in line)]


SECONDS = {"rows": {"data": 1, "policy": 1, "other": 2}, "pairs": {"reference": 1, "data": 1, "policy": 2, "other": 2}}


@pytest.mark.parametrize("unit", ["rows", "pairs"])
def test_each_line_of_a_run_has_the_numbers_of_its_steps_once(tmp_path, monkeypatch, unit):
    """The clock is read where data, policy and reference begin and end, and for a line: see `SECONDS`."""
    _, lines = trained(unit, tmp_path, monkeypatch, max_steps=3, logging_steps=1)
    assert [line["step"] for line in lines] == [1, 2, 3]  # not in the line with train_loss, after the third step
    seconds, total = SECONDS[unit], sum(SECONDS[unit].values())
    names = {"throughput/tokens_per_second", f"throughput/{unit}_per_second", "memory/peak_gib"}
    names |= {f"time/{phase}" for phase in seconds}
    first, second, third = lines
    assert {name for name in first if name.startswith(MEASURED)} == names  # no peak of a CPU is known
    assert first[f"throughput/{unit}_per_second"] == 8 / total
    assert first["throughput/tokens_per_second"] == pytest.approx(first["num_tokens"] / total)
    assert {phase: first[f"time/{phase}"] * total for phase in seconds} == pytest.approx(seconds)
    for former, line in ((first, second), (second, third)):  # one second more: from the line to the next batch
        tokens = line["num_tokens"] - former["num_tokens"]
        assert line["throughput/tokens_per_second"] == pytest.approx(tokens / (total + 1))


def test_steps_after_the_last_line_are_in_the_line_of_the_end(tmp_path, monkeypatch):
    _, lines = trained("rows", tmp_path, monkeypatch, max_steps=3, logging_steps=2)
    assert [("loss" in line, "train_loss" in line) for line in lines] == [(True, False), (False, True)]
    assert lines[1]["throughput/rows_per_second"] == 8 / 5


@pytest.mark.parametrize("unit", ["rows", "pairs"])
def test_an_evaluation_slows_no_line(tmp_path, monkeypatch, unit):
    row = test_sft.PAIRS[0] if unit == "rows" else test_vrpo_trainer.PAIRS[0]
    options = dict(eval_dataset=Dataset.from_list([row] * 3), eval_strategy="steps", eval_steps=1)
    _, (first, second) = trained(unit, tmp_path, monkeypatch, max_steps=2, logging_steps=1, **options)
    total = sum(SECONDS[unit].values())
    assert first[f"throughput/{unit}_per_second"] == 8 / total
    assert second[f"throughput/{unit}_per_second"] == 8 / (total + 2)  # from the line to it, and to the next batch


def test_a_resumed_run_counts_from_its_start(tmp_path, monkeypatch):
    saving = dict(max_steps=3, logging_steps=1, save_strategy="steps", save_steps=2)
    _, whole = trained("rows", tmp_path, monkeypatch, **saving)
    _, lines = trained("rows", tmp_path, monkeypatch, resume=str(tmp_path / "checkpoint-2"), **saving)
    line = lines[-1]
    assert line["step"] == 3
    assert line["num_tokens"] == whole[-1]["num_tokens"]
    assert line["throughput/rows_per_second"] == 8 / 4
    tokens = whole[2]["num_tokens"] - whole[1]["num_tokens"]
    assert line["throughput/tokens_per_second"] == pytest.approx(tokens / 4)


@pytest.mark.parametrize("unit", ["rows", "pairs"])
def test_a_run_in_half_precision_on_a_known_device_has_a_share_of_its_peak(tmp_path, monkeypatch, unit):
    """From the masks of the step: those of all rows, which one batch has, whatever their order."""
    monkeypatch.setattr(throughput, "peak_flops", lambda device: 1e6)
    options = dict(dtype=torch.float32, bf16=True, max_steps=1, per_device_train_batch_size=16)
    rows = {"rows": {"rows": test_sft.PAIRS[:16]}, "pairs": {}}[unit]
    run, (line,) = trained(unit, tmp_path, monkeypatch, **options, **rows)
    sizes, batch = MatrixSizes.of(run.model), next(iter(run.get_train_dataloader()))
    lengths = batch["attention_mask"].sum(-1)
    draws = 3 if unit == "pairs" else 1
    masked = line["throughput/mfu"] * 1e6 * sum(SECONDS[unit].values())
    linear = sizes.trained * int(lengths.sum()) * draws
    attention = sizes.attention * int(lengths.square().sum()) * draws
    passes = 4 if unit == "pairs" else 3  # forward, backward as two, and the reference's
    masked = (masked - passes * (2 * linear + 4 * attention)) / (passes * 2 * sizes.head)
    if unit == "pairs":
        assert masked == pytest.approx(float(run.masks(run.design, batch, 0)[0].masked_SBL.sum()), abs=1e-3)
    else:
        assert masked == pytest.approx(round(masked), abs=1e-3)
        assert 0 < masked <= int(batch["response_mask"].sum())
    _, (line,) = trained(unit, tmp_path, monkeypatch, **(options | {"bf16": False}), **rows)
    assert "throughput/mfu" not in line
