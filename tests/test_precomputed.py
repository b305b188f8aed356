"""Precomputed scores of the reference: the same trajectories, shared by runs, and refused by name when not theirs."""

import contextlib
import copy
import gc
import json
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_model, trajectory, two_processes
from datasets import Dataset
from peft import LoraConfig
from test_sft import IDS, TOKENIZER
from test_vrpo_trainer import PAIRS, trainer
from tokenizers.normalizers import Lowercase

from llada.cli.old_run import RemoveOldRun, remove_run
from llada.errors import DataError, OutputError
from llada.files import MANIFEST, write_manifest
from vrpo import VRPOTrainer
from vrpo.data import PAIR_TYPES
from vrpo.training import reference_table
from vrpo.training.precomputed import hash_of_reference

HELD_OUT = [{"prompt": f"{index}! ", "chosen": word, "rejected": "never"} for index, word in enumerate("abcde")]


def stored(folder: Path, table: Path | None = None, **changes):
    """A trainer that scores its reference before training; table: the directory of the scores."""
    directory = {} if table is None else {"ref_log_probs_dir": str(table)}
    return trainer(folder, precompute_ref_log_probs=True, **(directory | {"max_steps": 2} | changes))


@pytest.fixture
def no_reference(monkeypatch):
    def scored(*args, **kwargs):
        raise AssertionError("the reference is run")

    monkeypatch.setattr(VRPOTrainer, "reference_scores", scored)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """The scores of two passes over `PAIRS` and of the evaluation of `HELD_OUT`."""
    folder = tmp_path_factory.mktemp("tables") / "table"
    stored(folder.parent / "run", folder, max_steps=4, eval_dataset=HELD_OUT).train()
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[torch.Tensor, str]:
    """The trajectory of a run that scores its reference in every step, and its checkpoint after ten of 20 steps."""
    folder = tmp_path_factory.mktemp("plain")
    found = trajectory(trainer(folder, save_strategy="steps", save_steps=10))
    return found, str(folder / "checkpoint-10")


KINDS = {
    "all parameters": {},
    "adapters": dict(peft_config=LoraConfig(r=2)),
    "a second model beside adapters": dict(peft_config=LoraConfig(r=2), ref_model=2),
    "masks of its own and token weights": dict(estimator_options={"shared_masks": False}, ld_alpha=0.5),
    "dependent draws": dict(estimator="loo_complementary", n_t=4, variance_steps=0),
    "micro-batches": dict(per_device_train_batch_size=2, gradient_accumulation_steps=4, precompute_ref_batch_size=3),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "adapters" else kind for kind in KINDS]
)
def test_trajectories_are_those_of_a_reference_in_every_step(tmp_path, kind, request):
    """Two steps are a pass over the data, each with its own masks."""
    steps = 20 if kind in ("all parameters", "adapters") else 6

    def changes():
        second = {"ref_model": tiny_model(seed=2, **IDS)} if "ref_model" in KINDS[kind] else {}
        return KINDS[kind] | second | {"max_steps": steps}

    scored = trajectory(trainer(tmp_path, **changes())) if KINDS[kind] else request.getfixturevalue("plain")[0]
    run = stored(tmp_path, **changes())
    found = trajectory(run)
    assert scored.shape == (steps, 2)
    assert (scored - found).abs().max() <= 1e-10
    assert run.ref_model is None
    assert len(list((tmp_path / "reference").glob("*.epoch-*.safetensors"))) == steps // 2


def test_a_resumed_run_scores_the_passes_to_come_and_a_second_one_reads_them(tmp_path, plain, request):
    whole, checkpoint = plain
    resumed = trajectory(stored(tmp_path, max_steps=20), resume_from_checkpoint=checkpoint)
    assert (whole[10:] - resumed).abs().max() <= 1e-10
    epochs = sorted(path.name for path in (tmp_path / "reference").glob("*.safetensors"))
    assert epochs == [f"ref_log_probs.epoch-{epoch}.safetensors" for epoch in range(5, 10)]
    request.getfixturevalue("no_reference")
    again = trajectory(stored(tmp_path, max_steps=20), resume_from_checkpoint=checkpoint)
    assert torch.equal(resumed, again)


@pytest.mark.slow
def test_two_processes_score_a_share_each(tmp_path, plain):
    """Batches of seven of 16 rows, so that the last one has two rows on one process and none on the other."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "precompute_ref_batch_size": 7}
    split = two_processes(tmp_path, "test_vrpo_trainer", torch.float64, precompute_ref_log_probs=True, **settings)
    assert (plain[0] - split).abs().max() <= 1e-10


def test_the_reference_runs_once_for_each_different_row_and_pass_and_leaves_the_memory(tmp_path):
    run = stored(tmp_path, rows=PAIRS[:10] + PAIRS[:6], max_steps=4, eval_dataset={"a": HELD_OUT, "b": HELD_OUT[:2]})
    rows = []

    def count(module, args, kwargs):
        rows.append(len(args[0] if args else kwargs["input_ids"]))

    run.ref_model.register_forward_pre_hook(count, with_kwargs=True)
    reference = weakref.ref(run.ref_model)
    run.train()
    assert sum(rows) == 2 * (10 * 2 * 3 + 5 * 8)  # sides; rows, passes and draws of training; those of evaluation
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("changes", [{}, dict(peft_config=LoraConfig(r=2)), dict(beta=1.0, loss_type=["ipo"])])
def test_runs_that_differ_in_what_decides_no_score_share_a_table(tmp_path, table, no_reference, changes):
    run = stored(tmp_path, table, max_steps=4, learning_rate=1e-2, eval_dataset=HELD_OUT, **changes)
    run.train()
    run.evaluate()
    assert not (tmp_path / "reference").exists()


def test_passes_and_an_evaluation_are_added_and_nothing_is_changed(tmp_path, monkeypatch):
    folder = tmp_path / "table"
    stored(tmp_path, folder).train()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    calls = []
    score = VRPOTrainer.reference_scores
    monkeypatch.setattr(VRPOTrainer, "reference_scores", lambda *args: calls.append(1) or score(*args))
    stored(tmp_path, folder, max_steps=4, eval_dataset=HELD_OUT).train()
    assert len(calls) == 2 + 1  # 16 rows and 5 rows in batches of eight
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.items() <= after.items()
    added = {"ref_log_probs.epoch-1.safetensors", "ref_log_probs.evaluation.json"}
    assert after.keys() - before.keys() == {*added, "ref_log_probs.evaluation.safetensors", MANIFEST}


def lower_case():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    return tokenizer


OTHERS = {
    "seed is 3 there and 4 here": dict(seed=4),
    r"design is .ComposedDesign\(n_t=3.* there and .ComposedDesign\(n_t=4": dict(n_t=4),
    "eos_tail is '1' there and '2' here": dict(eos_tail="2"),
    "ld_alpha is None there and 0.5 here": dict(ld_alpha=0.5),
    "mixed_precision is 'no' there and 'bf16' here": dict(bf16=True),
    "another run: reference is '[0-9a-f]{32}' there and '[0-9a-f]{32}' here. Name": dict(seed_of_model=2),
    "another run: config is '[0-9a-f]{32}' there and '[0-9a-f]{32}' here. Name": dict(rope_theta=3e4),
    "dtype is 'torch.float64' there and 'torch.float32' here": dict(dtype=torch.float32),
    r"data is '16 rows, .*' there and '15 rows, .*' here\. Name": dict(rows=PAIRS[:15]),
    r"data is '16 rows, .*' here \(row 15 has no score there\)": dict(rows=[*PAIRS[:15], HELD_OUT[0]]),
    "of the evaluation rows .* another run: design": dict(eval_dataset=HELD_OUT, eval_draws=4),
    r"of the evaluation rows .* another run: data .* here \(row 0 has no score there\)": dict(eval_dataset=PAIRS[:2]),
}


@pytest.mark.parametrize("message", OTHERS)
def test_what_decides_a_score_is_compared_by_name(tmp_path, table, message):
    changes = dict(OTHERS[message])
    if model := {key: changes.pop(key) for key in ("seed_of_model", "rope_theta") if key in changes}:
        changes["model"] = tiny_model(**({"seed": model.pop("seed_of_model", 1)} | model | IDS))
    with pytest.raises(ValueError, match=message):
        stored(tmp_path, table, **changes).train()


def test_another_tokenizer_and_other_masks_from_the_same_seed_are_named(tmp_path, table, monkeypatch):
    run = stored(tmp_path, table)
    run.processing_class = lower_case()
    with pytest.raises(ValueError, match="another run: tokenizer is"):
        run.train()
    run = stored(tmp_path, table)
    draw = run.masks
    monkeypatch.setattr(run, "masks", lambda design, inputs, epoch: draw(design, inputs, epoch + 1))
    with pytest.raises(ValueError, match="another run: masks is"):
        run.train()


@pytest.mark.parametrize("name", ["ref_log_probs.epoch-1.safetensors", "ref_log_probs.training.json", MANIFEST])
@pytest.mark.parametrize("kept", [0.5, None])
def test_a_file_that_is_torn_or_missing_is_named(tmp_path, table, name, kept):
    folder = tmp_path / "table"
    folder.mkdir()
    for path in table.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if kept is not None:
        (folder / name).write_bytes(content[: int(kept * len(content))])
    run = stored(tmp_path, folder, max_steps=4)
    if name == MANIFEST and kept is None:  # nothing is known to be whole: all is scored again
        run.train()
        return
    with pytest.raises(ValueError, match=rf"scores in .*table are not whole: {name} .*\. Name another directory"):
        run.train()


def test_a_run_that_ended_while_it_wrote_goes_on_from_the_passes_that_are_whole(tmp_path, monkeypatch):
    folder, calls = tmp_path / "table", []

    def disk_full(folder, names, **options):
        calls.append(names)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        write_manifest(folder, names, **options)

    monkeypatch.setattr(reference_table, "write_manifest", disk_full)
    with pytest.raises(OutputError, match="table cannot be written: No space left on device"):
        stored(tmp_path, folder, max_steps=4).train()
    found = trajectory(stored(tmp_path, folder, max_steps=4))
    assert (found - trajectory(trainer(tmp_path, max_steps=4))).abs().max() <= 1e-10
    assert len(calls) == 3


@pytest.mark.parametrize("kind", ["all parameters", "adapters"])
def test_an_evaluation_of_other_rows_names_the_row(tmp_path, kind):
    run, plain = (make(tmp_path, eval_dataset=HELD_OUT, max_steps=2, **KINDS[kind]) for make in (stored, trainer))
    before = run.evaluate(PAIRS[:3])["eval_loss"]  # the reference is still there
    assert before == pytest.approx(plain.evaluate(PAIRS[:3])["eval_loss"], abs=1e-10)
    run.train()
    plain.train()
    assert run.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-10)
    assert run.evaluate(HELD_OUT[3:])["eval_loss"] == pytest.approx(plain.evaluate(HELD_OUT[3:])["eval_loss"])
    for score in (run.evaluate, run.predict):
        with pytest.raises(ValueError, match=r"no score of the reference for row 1 \(example id -?\d+\) in evaluation"):
            score([HELD_OUT[0], PAIRS[0]])


def test_a_second_call_of_train_with_more_epochs_says_that_the_reference_is_gone(tmp_path):
    run = stored(tmp_path, max_steps=2)
    run.train()
    run.train()
    run.args.max_steps = 4
    with pytest.raises(ValueError, match="stored for fewer epochs than this call of train.. has"):
        run.train()


def test_rows_that_stored_scores_do_not_tell_apart_are_refused(tmp_path):
    row = {"prompt_ids": [65], "chosen_ids": [66, 67], "rejected_ids": [66, 68], "length": 3, "example_id": 7, "row": 0}
    assert row.keys() == PAIR_TYPES.keys()
    other = row | {"prompt_ids": [65, 66], "chosen_ids": [67], "rejected_ids": [68], "row": 1}  # the same tokens
    run = stored(tmp_path, rows=Dataset.from_list([row, other] * 4))
    with pytest.raises(DataError, match=r"rows 0 and 1 have the same example id \(7\)"):
        run.train()


def test_directories_of_something_else_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is output_dir, where the model gets a manifest of its own"):
        stored(tmp_path, tmp_path)
    (tmp_path / "model.safetensors").touch()
    write_manifest(tmp_path)
    with pytest.raises(ValueError, match=r"holds other files than the reference's scores \(model.safetensors\)"):
        stored(tmp_path / "run", tmp_path).train()


def test_overwrite_deletes_the_scores_in_output_dir_and_no_others(tmp_path):
    stored(tmp_path / "run").train()
    stored(tmp_path / "run", tmp_path / "shared").train()
    (tmp_path / "run" / "deeper" / "table").mkdir(parents=True)
    (tmp_path / "run" / "deeper" / "table" / "ref_log_probs.training.json").touch()
    again = stored(tmp_path / "run", seed=4)
    with pytest.raises(ValueError, match="seed is 3 there and 4 here"):
        again.train()
    again.add_callback(RemoveOldRun())  # as a recipe does with `overwrite`
    again.train()
    identity = json.loads((tmp_path / "run" / "reference" / "ref_log_probs.training.json").read_text())
    assert identity["seed"] == 4
    remove_run(tmp_path / "run")
    assert not (tmp_path / "run" / "reference").exists()
    assert (tmp_path / "shared" / MANIFEST).exists()
    assert (tmp_path / "run" / "deeper" / "table" / "ref_log_probs.training.json").exists()


def test_the_hash_of_a_reference_is_that_of_the_weights_without_new_adapters(tmp_path):
    plain = tiny_model(seed=1, **IDS)
    expected = hash_of_reference(plain.requires_grad_(False))
    adapters = LoraConfig(r=2, target_modules=["q_proj", "wte"], modules_to_save=["attn_norm"])
    assert hash_of_reference(trainer(tmp_path, peft_config=adapters).model) == expected
    moved = tiny_model(seed=1, **IDS).requires_grad_(False)
    moved.model.transformer.ln_f.weight.data[3] += 1e-12
    assert hash_of_reference(moved) != expected


def test_weights_in_pieces_are_gathered_to_be_hashed(monkeypatch):
    """As under ZeRO-3, where a weight is empty but within a context of DeepSpeed."""
    model = tiny_model(seed=1, **IDS).requires_grad_(False)
    expected, gathered = hash_of_reference(model), []
    for weight in model.parameters():
        weight.ds_id, weight.all, weight.data = 0, weight.data, weight.new_empty(0)

    @contextlib.contextmanager
    def gather(weights):
        for weight in weights:
            weight.data = weight.all
        gathered.extend(weights)
        yield
        for weight in weights:
            weight.data = weight.new_empty(0)

    zero = SimpleNamespace(GatheredParameters=gather)
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(zero=zero))
    assert hash_of_reference(model) == expected
    assert len(gathered) == len(list(model.parameters()))
