"""What a user gets for bad input: one clear error, before anything is trained or overwritten."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_model
from test_ends import HOLD
from trl import ModelConfig

from llada.cli import train
from llada.cli.loading import load_columns, new_config, target_modules
from llada.cli.old_run import continues, remove_run
from llada.cli.recipe import RecipeArguments, parse
from llada.cli.train import loggers_named
from llada.data.tokenizer import byte_tokenizer
from llada.errors import DataError, OutputError, RecipeError
from llada.files import mark_unfinished, write_manifest
from llada.output import LOCK
from llada.recipes import pretrain, sft
from llada.training.distributed import check_engine, check_launcher, check_processes
from llada.training.progress import TIMESTEP
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo.recipes import align, make_pairs

ARCHITECTURE = dict(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=32, max_sequence_length=64, rope_theta=10000.0)
IDS = dict(vocab_size=262, mask_token_id=258, eos_token_id=257, pad_token_id=257, eot_token_id=261)


def write_rows(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def good(tmp_path):
    return write_rows(tmp_path / "good.jsonl", [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(16)])


def arguments(tmp_path, data: str, *extra: str) -> list[str]:
    settings = {
        "architecture": json.dumps(ARCHITECTURE), "tokenizer": "bytes", "dataset_name": data,
        "output_dir": tmp_path / "run", "max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none",
        "use_cpu": "true", "save_strategy": "no", "disable_tqdm": "true", "logging_steps": 1,
    }  # fmt: skip
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))] + list(extra)


def test_a_recipe_trains_saves_and_reloads(tmp_path, good):
    sft.main(arguments(tmp_path, good, "--eval_fraction", "0.25", "--save_strategy", "steps", "--save_steps", "1"))
    run = tmp_path / "run"
    assert json.loads((run / "eval_results.json").read_text())["eval_bits_per_byte"] > 0
    assert json.loads((run / "config.json").read_text())["eot_token_id"] == 261
    reloaded = ["--model_name_or_path", str(run), "--dataset_name", good, "--output_dir", str(tmp_path / "second")]
    sft.main([*reloaded, "--max_steps", "1", "--report_to", "none", "--use_cpu", "true", "--save_strategy", "no"])
    assert (tmp_path / "second" / "tokenizer.json").exists()


def test_pretraining_reads_a_text_file_and_streams(tmp_path):
    (tmp_path / "text.txt").write_text("To be, or not to be.\n" * 40)
    pretrain.main(arguments(tmp_path, str(tmp_path / "text.txt"), "--max_length", "32", "--dataset_streaming", "true"))
    assert (tmp_path / "run" / "model.safetensors").exists()


BAD_FILES = {
    "missing column": (
        [{"prompt": "q", "answer": "a"}],
        r"bad.jsonl: columns are \['answer', 'prompt'\]; this recipe needs",
    ),
    "empty prompt": (
        [{"prompt": "q", "completion": "a"}, {"prompt": "", "completion": "a"}],
        r"bad.jsonl: \d+ of 2 rows cannot be trained on:\n  1 row has an empty 'prompt': row 1 ",
    ),
    "empty completion": (
        [{"prompt": "q", "completion": ""}],
        r"bad.jsonl: \d+ of 1 row cannot be trained on:\n  1 row has an empty 'completion': row 0",
    ),
    "too long": (
        [{"prompt": "q" * 40, "completion": "a" * 40}],
        r"bad.jsonl: \d+ of 1 row cannot be trained on:\n  1 row is longer than 63 tokens .*row 0 .*; row 0: 80 tokens",
    ),
    "documents": ([{"text": "a"}], r"bad.jsonl: columns are \['text'\]; this recipe needs 'prompt' and 'completion'"),
    "fewer rows than a batch": (
        [{"prompt": "q", "completion": "a"}] * 3,
        r"3 training rows are less than one batch \(4 rows",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_rows_stop_the_recipe_before_it_writes(tmp_path, case):
    rows, message = BAD_FILES[case]
    with pytest.raises(ValueError, match=message):
        sft.main(arguments(tmp_path, write_rows(tmp_path / "bad.jsonl", rows), "--dataloader_drop_last", "true"))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_pairs_are_not_documents(tmp_path, good):
    with pytest.raises(RecipeError, match=r"this recipe needs 'text' \(documents: llada pretrain"):
        pretrain.main(arguments(tmp_path, good))


def test_unknown_keys_are_refused(tmp_path, good):
    (tmp_path / "bad.yaml").write_text("learning_rte: 1.0e-3\n")
    with pytest.raises(RecipeError, match=r"bad.yaml: .*learning_rte"):
        sft.main(["--config", str(tmp_path / "bad.yaml"), *arguments(tmp_path, good)])
    with pytest.raises(RecipeError, match=r"the command line: .*--learning_rte"):
        sft.main(arguments(tmp_path, good, "--learning_rte", "1"))
    (tmp_path / "good.yaml").write_text("seed: 3\nbeta: high\n")
    at = ["--config", str(tmp_path / "good.yaml"), "--use_cpu", "true"]
    with pytest.raises(RecipeError, match=r"^the command line: loss_type='sigmoidd' is unknown"):
        align.main([*at, "--beta", "1", "--loss_type", "sigmoidd"])
    with pytest.raises(RecipeError, match=r"^the command line: .*--learning_rte"):
        align.main([*at, "--beta", "1", "--learning_rte", "1"])
    with pytest.raises(RecipeError, match=r"^the command line: argument --beta: .*'low' \(--help lists the options\)$"):
        align.main([*at, "--beta", "low"])
    with pytest.raises(RecipeError, match=r"good.yaml: argument --beta: invalid float value: 'high'"):
        align.main(at)
    with pytest.raises(RecipeError, match="architecture: d_modle is no field of .* .did you mean d_model"):
        sft.main(arguments(tmp_path, good, "--architecture", '{"d_modle": 4}'))
    with pytest.raises(FileNotFoundError, match="no such config file: absent.yaml"):
        sft.main(["--config", "absent.yaml"])


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path, good):
    tokenizer = byte_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="has no mask token"):
        sft.main(arguments(tmp_path, good, "--tokenizer", str(tmp_path / "tokenizer")))


def test_checkpoint_and_tokenizer_must_agree_before_weights_are_read(tmp_path, good):
    model = tiny_model(dtype=torch.float32, **(IDS | {"mask_token_id": 5}))
    model.save_pretrained(tmp_path / "model")
    command = ["--model_name_or_path", str(tmp_path / "model"), "--tokenizer", "bytes", "--dataset_name", good]
    with pytest.raises(ValueError, match="mask_token_id is 5 in the model's config but 258 in the tokenizer"):
        sft.main([*command, "--output_dir", str(tmp_path / "run"), "--report_to", "none", "--use_cpu", "true"])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--model_name_or_path", "x"), "either model_name_or_path .* or architecture"),
        (("--eval_fraction", "1.5"), "eval_fraction=1.5 must be at least 0 and below 1"),
        (("--eval_fraction", "0.5", "--dataset_streaming", "true"), "not streamed"),
        (("--eval_fraction", "0.99"), "eval_fraction=0.99 holds out all 16 rows of .*good.jsonl that can be"),
        (("--expected_processes", "2"), "expected_processes is 2, but this run has 1 processes"),
        (("--load_in_4bit", "true"), "load_in_4bit and load_in_8bit (need bitsandbytes|freeze the weights)"),
        (("--max_length", "65"), "max_length=65 must be between 1 and the model's context, 64"),
        (("--resume", "true", "--overwrite", "true"), "resume and overwrite are both set"),
    ],
)
def test_settings_that_cannot_work_are_named(tmp_path, good, extra, message):
    with pytest.raises(ValueError, match=message):
        sft.main(arguments(tmp_path, good, *extra))


def test_a_new_model_takes_ids_from_the_architecture_where_the_tokenizer_has_none():
    """The published tokenizer does not say which of its tokens is the mask."""
    tokenizer = byte_tokenizer()
    tokenizer.mask_token = None
    config = new_config(ARCHITECTURE | {"mask_token_id": 258}, tokenizer)
    assert (config.mask_token_id, config.eos_token_id, config.eot_token_id, config.vocab_size) == (258, 257, 261, 262)


def make_run(folder, *steps: int) -> str:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return str(folder)


def test_an_output_directory_with_a_run_is_not_touched_without_being_told(tmp_path, good):
    folder = make_run(tmp_path / "run", 5)
    with pytest.raises(RecipeError, match=r"already holds a run: set resume to continue it, overwrite to replace it"):
        sft.main(arguments(tmp_path, good))
    assert not continues(folder, resume=False, overwrite=True)
    assert (tmp_path / "run" / "checkpoint-5").exists()  # looked at, not deleted
    (tmp_path / "run" / "adapter_config.json").write_text(
        "{}"
    )  # of an earlier LoRA run: it would load onto new weights
    sft.main(arguments(tmp_path, good, "--overwrite", "true"))
    assert not list((tmp_path / "run").glob("checkpoint-5")) + list((tmp_path / "run").glob("adapter_*"))


def test_a_resumed_recipe_continues_where_it_stopped(tmp_path, good):
    sft.main(arguments(tmp_path, good, "--save_strategy", "steps", "--save_steps", "1", "--max_steps", "2"))
    sft.main(arguments(tmp_path, good, "--resume", "true", "--max_steps", "3"))
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 3


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_a_finished_recipe_that_is_resumed_changes_nothing(tmp_path, good, capsys, strategy):
    """It trained a step more each time, saved checkpoint-3, -4, ... and other weights."""
    saving = ("--save_strategy", strategy, "--save_steps", "1", "--eval_fraction", "0.25")
    sft.main(arguments(tmp_path, good, *saving))
    before = contents(tmp_path / "run")
    sft.main(arguments(tmp_path, good, *saving, "--resume", "true"))
    out = capsys.readouterr().out
    assert re.search(r"the run in \S*run is finished: all of its 2 steps are done, and nothing was changed\. More", out)
    assert {name for name, content in contents(tmp_path / "run").items() if before.get(name) != content} <= {LOCK}
    more = arguments(tmp_path, good, *saving, "--resume", "true", "--max_steps", "3")
    if strategy == "no":
        with pytest.raises(RecipeError, match="no whole checkpoint to resume from: there is none at all"):
            sft.main(more)
        assert contents(tmp_path / "run").keys() == before.keys()
    else:
        sft.main(more)
        assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 3


def test_a_model_that_is_not_whole_is_made_again_from_the_last_checkpoint(tmp_path, good, caplog):
    """The run was killed while it saved its model, or the file was damaged later."""
    saving = ("--save_strategy", "steps", "--save_steps", "1")
    sft.main(arguments(tmp_path, good, *saving))
    weights = tmp_path / "run" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    sft.main(arguments(tmp_path, good, *saving, "--resume", "true"))
    assert "the model in" in caplog.text
    assert "is not whole: model.safetensors has" in caplog.text
    assert weights.read_bytes() == whole
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


def test_resume_starts_a_run_that_has_saved_nothing_and_refuses_to_lose_a_model(tmp_path, good, caplog):
    """One command line then serves a scheduler that starts it again and again."""
    mark_unfinished(tmp_path / "run" / "checkpoint-1")
    sft.main(arguments(tmp_path, good, "--resume", "true"))
    assert re.search(r"run holds no whole checkpoint \(begun only: checkpoint-1\): the run starts anew", caplog.text)
    (tmp_path / "run" / "trainer_state.json").unlink()
    with pytest.raises(RecipeError, match="holds a model and no whole checkpoint: set overwrite to train it again"):
        sft.main(arguments(tmp_path, good, "--resume", "true"))


def test_overwrite_deletes_what_a_run_has_written_and_nothing_else(tmp_path):
    """The reference's adapters were left, and the state and results of the run before."""
    run = Path(make_run(tmp_path / "run", 1, 2))
    ours = ["model.safetensors", "model-00001-of-00002.safetensors", "adapter_config.json", "adapter_model.safetensors"]
    ours += ["ref/adapter_config.json", "ref/adapter_model.safetensors", "trainer_state.json", "eval_results.json"]
    ours += ["all_results.json", "training_args.bin", "config.json", "chat_template.jinja"]
    theirs = ["notes.txt", "checkpoint-best/a", "adapter_notes.txt", "other.safetensors", "runs/log", "README.md"]
    for name in [*ours, *theirs]:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
    write_manifest(run, ["config.json", "chat_template.jinja"])
    remove_run(run)
    assert contents(run).keys() == set(theirs)
    assert not (run / "ref").exists()
    (run / "ref").mkdir()
    (run / "ref" / "mine").touch()
    remove_run(run)
    assert (run / "ref" / "mine").exists()


def test_a_second_recipe_in_a_directory_is_refused_before_it_reads_anything(tmp_path, good):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=r"run is in use by another run \(process"):
            sft.main(arguments(tmp_path, good, "--overwrite", "true"))
        other.kill()


def lone_launch(monkeypatch, **environment):
    """The environment that `accelerate launch --num_processes 2` leaves on a CPU."""
    for name, value in ({"ACCELERATE_DYNAMO_MODE": "default", "MASTER_ADDR": "127.0.0.1"} | environment).items():
        monkeypatch.setenv(name, value)


def test_one_process_started_for_two_is_noticed_without_being_told_a_number(tmp_path, good, monkeypatch):
    lone_launch(monkeypatch)
    with pytest.raises(RecipeError, match="asked for several processes and started one, as it does on a CPU"):
        sft.main(arguments(tmp_path, good))
    with pytest.raises(RecipeError, match="asked for several processes and started one, as it does on a CPU"):
        make_pairs.main(["--model", "m", "--prompts", good, "--output", str(tmp_path / "pairs.jsonl")])
    assert not (tmp_path / "run").exists()
    sft.main(arguments(tmp_path, good, "--expected_processes", "1"))  # one is asked for
    lone_launch(monkeypatch, OMPI_COMM_WORLD_SIZE="2")
    check_launcher()  # mpirun says how many there are


def test_fewer_processes_than_asked_for_are_noticed(monkeypatch):
    args = type("Args", (), {"world_size": 1, "parallel_mode": type("Mode", (), {"value": "not_parallel"})()})()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="WORLD_SIZE is 2, but this run has 1 processes"):
        check_processes(args, None)


def test_an_engine_that_accelerate_dropped_is_noticed(monkeypatch):
    accelerator = type("Accelerator", (), {"distributed_type": type("Type", (), {"value": "MULTI_CPU"})()})()
    trainer = type("Trainer", (), {"accelerator": accelerator})()
    check_engine(trainer)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match="asks for FSDP, but this run is MULTI_CPU"):
        check_engine(trainer)


def free_port() -> str:
    """A port that is free now: launchers that are told 0 do not always agree with their workers on what it means."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def launch_recipe(*command: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", free_port(), *command],
        cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def results(folder) -> dict[str, float]:
    """Of a saved run: its training losses and what it measured on held-out rows, by masking probability too."""
    saved = json.loads((folder / "eval_results.json").read_text())
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = [row["loss"] for row in history if "loss" in row]
    names = ("eval_loss", "eval_bits_per_token", "eval_bits_per_byte", "eval_rewards/margins", "eval_logps/chosen")
    losses = {f"loss of step {index}": loss for index, loss in enumerate(losses)}
    bins = {f"{name} of step {row['step']}": row[name] for row in history for name in row if name.startswith(TIMESTEP)}
    return losses | bins | {name: saved[name] for name in names if name in saved}


def test_a_page_that_fails_is_a_warning_and_the_model_is_saved(tmp_path, good, caplog, capsys):
    def failing(output_dir):
        assert (Path(output_dir) / "trainer_state.json").exists()  # all is saved before
        raise KeyError("loss")

    columns, types = sft.COLUMNS, (MaskedDiffusionTrainer, MaskedDiffusionConfig)
    train.main(*types, columns, arguments(tmp_path, good), failing)
    run = tmp_path / "run"
    assert "the page of the run was not written (KeyError: 'loss'). The model is saved" in caplog.text
    assert f"vrpo report {run}" in caplog.text
    assert "The page of this run" not in capsys.readouterr().out
    train.main(*types, columns, arguments(tmp_path, good, "--overwrite", "true"), lambda folder: Path(folder, "a.html"))
    assert f"The page of this run, for a browser: {run / 'a.html'}\nNext:\n" in capsys.readouterr().out
    assert json.loads((run / "run.json").read_text())["data"] == {
        "train": good, "rows": 16, "eval": None, "eval_rows": None,
    }  # fmt: skip
    assert len(json.loads((run / "run.json").read_text())["starts"]) == 1  # `overwrite` begins another record


@pytest.mark.parametrize("streaming", [pytest.param("false", marks=pytest.mark.slow), "true"])
def test_two_cpu_processes_through_the_shipped_config_equal_one(tmp_path, good, streaming):
    """2 x 4 rows against 1 x 8, held-out rows (an odd number) each scored once; a stream is split by row."""
    held_out = write_rows(
        tmp_path / "held_out.jsonl", [{"prompt": f"q{i}", "completion": f"b{i * i}"} for i in range(5)]
    )
    extra = ("--eval_dataset_name", held_out, "--dataset_streaming", streaming)
    sft.main([*arguments(tmp_path / "one", good, *extra), "--per_device_train_batch_size", "8"])
    config = ("--config_file", "recipes/accelerate/ddp_cpu.yaml")
    two = arguments(tmp_path / "two", good, *extra, "--expected_processes", "2")
    output = launch_recipe(*config, "recipes/sft.py", *two)
    assert (tmp_path / "two" / "run" / "eval_results.json").exists(), output.stderr[-3000:]
    assert results(tmp_path / "two" / "run") == pytest.approx(results(tmp_path / "one" / "run"), rel=1e-5, abs=1e-5)
    assert [len(list((tmp_path / name / "run").glob("report.html"))) for name in ("one", "two")] == [1, 1]
    run, samples = (json.loads((tmp_path / "two" / "run" / name).read_text()) for name in ("run.json", "samples.json"))
    assert (run["starts"][0]["processes"], [each["step"] for each in samples["samples"]]) == (2, [0, 2])
    assert "find_unused_parameters" not in output.stderr


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sft", "align"])
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_shards_equal_one_process(tmp_path, good, preferences, stage, recipe, monkeypatch):
    """The shipped ZeRO configs on two CPU processes, from a checkpoint (ZeRO-3 draws new weights in another order).

    Twenty steps of two micro-batches; VRPO has two backward passes in each, and only the last one may step the
    optimizer.
    """
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    shipped = (ROOT / f"recipes/accelerate/zero{stage}.yaml").read_text()
    config = tmp_path / "zero.yaml"
    config.write_text(shipped.replace("num_processes: 8", "num_processes: 2"))
    tiny_model(dtype=torch.float32, **IDS).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")

    def command(name: str, *extra: str) -> list[str]:
        data = good if recipe == "sft" else preferences
        draws = () if recipe == "sft" else ("--n_t", "2", "--learning_rate", "1e-3", "--warmup_steps", "0")
        new = arguments(tmp_path / name, data, "--eval_fraction", "0.5", "--max_steps", "20", *draws, *extra)
        return ["--model_name_or_path", str(tmp_path / "model"), *new[4:]]  # instead of architecture and tokenizer

    one = ("--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1")
    (sft if recipe == "sft" else align).main(command("one", *one))
    launcher = ("--config_file", str(config), f"recipes/{recipe}.py")
    two = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--expected_processes", "2")
    output = launch_recipe(*launcher, *command("two", *two))
    assert (tmp_path / "two" / "run" / "eval_results.json").exists(), output.stderr[-3000:]
    one_process = results(tmp_path / "one" / "run")
    assert sum("step" in name for name in one_process) == 20
    assert results(tmp_path / "two" / "run") == pytest.approx(one_process, rel=1e-4, abs=1e-4)


def write_flawed(folder) -> str:
    return write_rows(folder / "bad.jsonl", [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": ""}] * 4)


MESSAGE = r"DataError: \S*bad.jsonl: \d+ of \d+ rows cannot be trained on:"
END = "Remove them, or set drop_invalid to leave them out"


@pytest.mark.slow
def test_an_error_stands_last_and_alone_under_a_quiet_launcher(tmp_path):
    config = ("--quiet", "--config_file", "recipes/accelerate/single.yaml")
    result = launch_recipe(*config, "recipes/sft.py", *arguments(tmp_path, write_flawed(tmp_path)))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-3:]
    assert re.search(MESSAGE, last[0])
    assert re.search(r"rows? 1\b", last[1])
    assert last[2] == END


def test_of_two_processes_one_states_the_error_and_it_stands_last(tmp_path):
    """The launcher's own report comes after all that the processes print, and ends with the first one's message."""
    config = ("--config_file", "recipes/accelerate/ddp_cpu.yaml")
    result = launch_recipe(*config, "recipes/sft.py", *arguments(tmp_path, write_flawed(tmp_path)))
    assert result.returncode == 1
    assert len(re.findall(MESSAGE, result.stderr)) == 1
    assert result.stderr.count("Traceback") == 1  # the launcher's, above its report
    report = result.stderr.strip().splitlines()
    assert set(report[-1]) == {"="}
    assert re.search(MESSAGE, report[-4])
    assert report[-2] == END


def test_loggers_are_named_on_the_command_line_and_in_yaml(tmp_path):
    types = (RecipeArguments, ModelConfig, MaskedDiffusionConfig)
    command = ["--output_dir", str(tmp_path), "--use_cpu", "true"]
    assert parse(types, [*command, "--report_to", "wandb", "tensorboard"])[2].report_to == ["wandb", "tensorboard"]
    assert parse(types, [*command, "--report_to", "none"])[2].report_to == []
    (tmp_path / "a.yaml").write_text("report_to: [wandb, tensorboard]\n")
    command += ["--config", str(tmp_path / "a.yaml")]
    assert parse(types, command)[2].report_to == ["wandb", "tensorboard"]
    assert parse(types, [*command, "--report_to", "tensorboard"])[2].report_to == ["tensorboard"]


def evaluated_steps(run) -> list[int]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [row["step"] for row in history if "eval_loss" in row]


def test_the_last_step_is_evaluated_once_and_logged_to_one_file(tmp_path, good):
    extra = ("--eval_fraction", "0.25", "--report_to", "tensorboard")
    every = ("--eval_strategy", "steps", "--eval_steps", "1")
    sft.main(arguments(tmp_path / "often", good, *extra, *every))
    sft.main(arguments(tmp_path / "once", good, *extra))
    often, once = tmp_path / "often" / "run", tmp_path / "once" / "run"
    assert (evaluated_steps(often), evaluated_steps(once)) == ([1, 2], [2])
    extra_bins = {name for name in results(often) if name.startswith(TIMESTEP) and name.endswith("of step 1")}
    assert {name: value for name, value in results(often).items() if name not in extra_bins} == results(once)
    assert [len(list(run.rglob("events.out.*"))) for run in (often, once)] == [1, 1]


def test_a_run_that_was_killed_while_it_saved_its_model_is_not_evaluated_again(tmp_path, good):
    """Its log had the evaluation of the last step twice."""
    extra = ("--eval_fraction", "0.25", "--save_strategy", "steps", "--save_steps", "1")
    sft.main(arguments(tmp_path, good, *extra))
    before = results(tmp_path / "run")
    for name in ("trainer_state.json", "eval_results.json", "all_results.json"):
        (tmp_path / "run" / name).unlink()
    sft.main(arguments(tmp_path, good, *extra, "--resume", "true"))
    assert evaluated_steps(tmp_path / "run") == [2]
    assert results(tmp_path / "run") == before


def test_the_saved_model_is_evaluated_where_it_is_not_the_last(tmp_path, good):
    """A rate at which the loss grows: the best model is that of step 1, and its metrics are the run's."""
    extra = ("--eval_fraction", "0.25", "--eval_strategy", "steps", "--eval_steps", "1", "--learning_rate", "10")
    best = ("--load_best_model_at_end", "true", "--save_strategy", "steps", "--save_steps", "1")
    sft.main(arguments(tmp_path, good, *extra, *best))
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [row["eval_loss"] for row in history if "eval_loss" in row]
    assert losses[0] != losses[1]
    assert results(tmp_path / "run")["eval_loss"] == pytest.approx(min(losses[:2]))


def test_a_recipe_gives_no_warning_on_a_cpu(tmp_path, good):
    """In a fresh process without `use_cpu`: peft's call of a deprecated name and pinned memory gave one each."""
    adapters = ("--use_peft", "true", "--lora_dropout", "0.0", "--learning_rate", "1e-4")
    at = arguments(tmp_path, good, "--eval_fraction", "0.25", *adapters)
    at[at.index("--use_cpu") + 1] = "false"
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    found = subprocess.run(
        [sys.executable, "recipes/sft.py", *at], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    assert "arning" not in found.stderr


def test_the_launcher_form_that_silently_runs_one_process_is_refused(tmp_path, good):
    extra = ("--expected_processes", "2")
    result = launch_recipe("--cpu", "--num_processes", "2", "recipes/sft.py", *arguments(tmp_path, good, *extra))
    assert result.returncode != 0
    assert "expected_processes is 2, but this run has 1 processes" in result.stderr


def test_yaml_and_command_line_meet_in_the_dataclasses(tmp_path):
    (tmp_path / "a.yaml").write_text("learning_rate: 1e-3\neos_tail: batch\nlora_r: 4\nseed: 7\n")
    recipe, model_args, args = parse(
        (RecipeArguments, ModelConfig, MaskedDiffusionConfig),
        ["--config", str(tmp_path / "a.yaml"), "--seed", "8", "--output_dir", str(tmp_path), "--use_cpu", "true"],
    )
    assert (args.learning_rate, args.eos_tail, model_args.lora_r, args.seed) == (1e-3, "batch", 4, 8)
    assert recipe.resume is False
    assert args.max_length is None


@pytest.fixture
def preferences(tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(16)]
    return write_rows(tmp_path / "preferences.jsonl", rows)


@pytest.mark.parametrize("adapters", ["false", "true"])
def test_align_trains_evaluates_and_saves(tmp_path, preferences, adapters):
    extra = ("--eval_fraction", "0.25", "--n_t", "2", "--gradient_accumulation_steps", "1", "--use_peft", adapters)
    align.main(arguments(tmp_path, preferences, *extra))
    saved = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert saved["eval_rewards/margins_ci95"] > 0
    assert (tmp_path / "run" / "adapter_model.safetensors").exists() == (adapters == "true")


@pytest.mark.slow
def test_align_runs_as_a_script_on_two_processes(tmp_path, preferences):
    """Its name is the package's, which only shows when it is started by its path; rows are streamed."""
    config = ("--config_file", "recipes/accelerate/ddp_cpu.yaml")
    extra = (
        "--n_t",
        "2",
        "--gradient_accumulation_steps",
        "1",
        "--expected_processes",
        "2",
        "--dataset_streaming",
        "true",
    )
    output = launch_recipe(*config, "recipes/align.py", *arguments(tmp_path, preferences, *extra))
    assert (tmp_path / "run" / "model.safetensors").exists(), output.stderr[-3000:]


def test_preferences_are_asked_for_by_name(tmp_path, good):
    with pytest.raises(RecipeError, match=r"this recipe needs 'prompt' and 'chosen' and 'rejected', or 'chosen' and"):
        align.main(arguments(tmp_path, good))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_pairs_are_made_from_checked_answers(tmp_path):
    """A verifier of one's own, on a model that has learnt nothing: pairs differ and come in TRL's format."""
    tiny_model(dtype=torch.float32, **IDS).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "even.py").write_text("def even(row, answer):\n    return len(answer.encode()) % 2 == 0\n")
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"q{i}"} for i in range(6)])
    command = ["--model", str(tmp_path / "model"), "--prompts", prompts, "--output", str(tmp_path / "pairs.jsonl")]
    command += [
        "--verifier",
        f"{tmp_path / 'even.py'}:even",
        "--gen_length",
        "8",
        "--steps",
        "8",
        "--block_length",
        "8",
    ]
    make_pairs.main(command)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        assert len(row["chosen"].encode()) % 2 == 0
        assert len(row["rejected"].encode()) % 2 == 1
    with pytest.raises(ValueError, match="exists: set overwrite"):
        make_pairs.main(command)
    (tmp_path / "all.py").write_text("def right(row, answer):\n    return True\n")
    output = tmp_path / "none.jsonl"
    command[command.index("--output") + 1] = str(output)
    none = ["--verifier", f"{tmp_path / 'all.py'}:right"]
    with pytest.raises(RecipeError, match=r"^no pairs: 24 of 24 answers are right .*none.jsonl is not written"):
        make_pairs.main([*command, *none])
    assert not output.exists()
    make_pairs.main(command)  # another verifier takes the answers that are there
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows
    with pytest.raises(RecipeError, match="verifier='best' must be one of"):
        make_pairs.main([*command, "--overwrite", "true", "--verifier", "best"])


def test_columns_of_the_chat_template_are_loaded_and_images_refused(tmp_path):
    """`tools` and `chat_template_kwargs` were dropped here, before the trainer could see them."""
    row = {"messages": [], "tools": "[]", "chat_template_kwargs": {"a": 1}, "source": "web"}
    rows = load_columns(write_rows(tmp_path / "a.jsonl", [row]), None, "train", False, sft.COLUMNS)
    assert set(rows.column_names) == {"messages", "tools", "chat_template_kwargs"}
    with pytest.raises(DataError, match="vision-related: it has the column 'images'"):
        load_columns(write_rows(tmp_path / "b.jsonl", [row | {"images": ["x"]}]), None, "train", False, sft.COLUMNS)


def test_modules_for_adapters_are_named_and_one_name_is_enough():
    """A single name comes from TRL as a string, which PEFT would compare with whole names: "q_proj" was not found."""
    model = tiny_model()
    assert target_modules("q_proj", model) == ["q_proj"]
    assert target_modules(["q_proj", "ff_proj"], model) == ["q_proj", "ff_proj"]
    assert target_modules(r".*\.[qk]_proj", model) == r".*\.[qk]_proj"
    assert target_modules("all-linear", model) == "all-linear"
    with pytest.raises(RecipeError, match="has no module nope; its linear layers are attn_out, .*q_proj"):
        target_modules(["q_proj", "nope"], model)


def test_a_logger_that_cannot_start_is_named():
    usage_error = type("UsageError", (Exception,), {"__module__": "wandb.errors.errors"})
    named = r"^report_to=\['wandb'\]: No API key configured\. `--report_to none`"
    with pytest.raises(RecipeError, match=named), loggers_named(["wandb"]):
        raise usage_error("No API key configured")
    with pytest.raises(RecipeError, match="requires trackio to be installed"), loggers_named(["trackio"]):
        raise RuntimeError("TrackioCallback requires trackio to be installed. Run `pip install trackio`.")
    with pytest.raises(RuntimeError, match="a bug"), loggers_named(["wandb"]):
        raise RuntimeError("a bug")


def test_overwrite_deletes_nothing_when_a_logger_cannot_start(tmp_path, good, monkeypatch):
    from transformers.integrations import WandbCallback

    def no_key(*args, **kwargs):
        raise type("UsageError", (Exception,), {"__module__": "wandb.errors.errors"})("No API key configured.")

    monkeypatch.setattr(WandbCallback, "setup", no_key)
    make_run(tmp_path / "run", 5)
    with pytest.raises(RecipeError, match=r"^report_to=\['wandb'\]: No API key configured\. `--report_to none`"):
        sft.main(arguments(tmp_path, good, "--overwrite", "true", "--report_to", "wandb"))
    assert (tmp_path / "run" / "checkpoint-5" / "trainer_state.json").exists()
