"""Parts of an output: what is torn or foreign, full disks, signals, other runs at work; nothing is lost or mixed."""

import builtins
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, tiny_model
from safetensors.torch import load_file, save_file
from test_completions import command, killed_after, saved  # noqa: F401  (a fixture)
from test_sft import IDS, TOKENIZER

from llada.cli.parts import PartFiles
from llada.errors import OutputError, RecipeError
from llada.recipes import generate
from llada.training.signals import REQUEUE
from vrpo.recipes import make_pairs

RUN = {"seed": 0, "weights": "a"}
ROWS = ['{"seed": 0, "weights": "a"}', '{"index": 0, "completion": "x"}', '{"index": 1, "completion": "y"}']


def part(folder, text: str | bytes, number: int = 0) -> PartFiles:
    content = text.encode() if isinstance(text, str) else text
    (folder / f"o.jsonl.part{number}").write_bytes(content)
    return PartFiles(folder / "o.jsonl", RUN)


WHOLE = "\n".join(ROWS) + "\n"


@pytest.mark.parametrize("cut", range(len(WHOLE) + 1))
def test_a_part_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(tmp_path, cut):
    files = part(tmp_path, WHOLE[:cut])
    kept = {index: text for index, text in enumerate("xy") if cut >= len("\n".join(ROWS[: index + 2])) + 1}
    assert files.done() == kept
    files.append(0, {2: "z"})
    assert files.done() == kept | {2: "z"}


@pytest.mark.parametrize(
    ("line", "content", "message"),
    [
        (1, "garbage", "line 1 .*: delete the file, whose answers are sampled again"),
        (1, '{"seed": 0', "line 1 .*: delete the file"),
        (1, "[]", "line 1 .it is no object.: delete the file"),
        (2, "", "line 2 .*: delete this line, whose answer is sampled again"),
        (2, '{"index": 0, "comp', "line 2 .*: delete this line"),
        (2, "\x00\x00\x00", "line 2 .*: delete this line"),
        (2, b'{"index": 0, "completion": "\xff"}', "line 2 .*utf-8.*: delete this line"),
        (2, "3", "line 2 .it is no object."),
        (2, "null", "line 2 .it is no object."),
        (2, "{}", "line 2 .it holds no answer."),
        (2, '{"index": "0", "completion": "x"}', "line 2 .it holds no answer."),
        (2, '{"index": 0.0, "completion": "x"}', "line 2 .it holds no answer."),
        (2, '{"index": true, "completion": "x"}', "line 2 .it holds no answer."),
        (2, '{"index": 0}', "line 2 .it holds no answer."),
        (2, '{"index": 0, "completion": null}', "line 2 .it holds no answer."),
        (2, '{"index": 0, "completion": ["x"]}', "line 2 .it holds no answer."),
        (3, '<<<<<<< {"index": 1}', "line 3 "),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, content, message):
    rows = [row.encode() for row in ROWS]
    rows[line - 1] = content.encode() if isinstance(content, str) else content
    files = part(tmp_path, b"\n".join(rows) + b"\n")
    with pytest.raises(RecipeError, match=rf"o\.jsonl\.part0 is damaged in {message}"):
        files.done()
    files.drop_others()  # as with overwrite
    assert files.done() == {}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('{"seed": 1, "weights": "a"}', "was made with seed=1, and this run has 0: go on with the same model"),
        ('{"seed": 0, "weights": "b"}', "was made with weights='b', and this run has 'a'"),
        ('{"seed": 1, "weights": "b"}', "was made with seed=1 and weights='b', and this run has 0 and 'a'"),
        ('{"seed": 0}', "was made with weights=None, and this run has 'a'"),
        ("{}", "was made with seed=None and weights=None"),
    ],
)
def test_a_part_of_another_run_is_named(tmp_path, header, message):
    with pytest.raises(RecipeError, match=message):
        part(tmp_path, f"{header}\n{ROWS[1]}\n").done()


def test_parts_of_any_number_of_processes_are_read_and_empty_ones_are_no_matter(tmp_path):
    part(tmp_path, "\n".join(ROWS[:2]) + "\n", number=0)
    part(tmp_path, "\n".join([ROWS[0], ROWS[2]]) + "\n", number=13)
    files = part(tmp_path, "", number=2)
    assert files.done() == {0: "x", 1: "y"}
    (tmp_path / "o.jsonl.part3").mkdir()
    with pytest.raises(RecipeError, match=r"part3 cannot be read: Is a directory"):
        files.done()


def test_overwriting_goes_on_from_parts_of_the_same_run(tmp_path):
    files = part(tmp_path, WHOLE)
    files.drop_others()
    assert files.done() == {0: "x", 1: "y"}


def full_after(monkeypatch, number: int) -> list[int]:
    """A disk that is full after so many more bytes of an output and its parts; the result is what is left of them."""
    left, opened = [number], builtins.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content: bytes):
            written, left[0] = content[: left[0]], max(0, left[0] - len(content))
            self.file.write(written)
            self.file.flush()
            if len(written) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def limited(name, mode="r", *args, **kwargs):
        file = opened(name, mode, *args, **kwargs)
        return Full(file) if "o.jsonl" in str(name) and mode in ("ab+", "wb") else file

    monkeypatch.setattr(builtins, "open", limited)
    return left


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.55, 0.6, 0.65, 0.8, 0.99])
def test_a_full_disk_costs_no_answer_that_was_written(saved, monkeypatch, share):  # noqa: F811
    """In the heading, in an answer, in the output: one line says so, and the same command goes on."""
    recipe = generate
    with monkeypatch.context() as patch:
        left = full_after(patch, 10**6)
        recipe.main(command(saved, "o.jsonl"))
    (saved / "o.jsonl").rename(saved / "whole.jsonl")
    with monkeypatch.context() as patch:
        full_after(patch, int(share * (10**6 - left[0])))
        with pytest.raises(OutputError) as error:
            recipe.main(command(saved, "o.jsonl"))
    named = r"o\.jsonl(\.part0)? cannot be written: No space left on device\. The answers so far are kept beside it"
    error.match(f"{named}: the same command goes on from them$")
    assert not (saved / "o.jsonl").exists()
    before, sampled = len(PartFiles(saved / "o.jsonl", {}).done()), list[int]()
    monkeypatch.setattr(PartFiles, "append", counted(PartFiles.append, sampled))
    recipe.main(command(saved, "o.jsonl"))
    assert (saved / "o.jsonl").read_text() == (saved / "whole.jsonl").read_text()
    assert len(sampled) == (0 if before == 7 else 7 - before // 2 * 2)  # batches of two
    assert not [path for path in saved.iterdir() if ".part" in path.name or path.name.endswith(".tmp")]


def counted(append, sampled: list[int]):
    def counting(self, process, found):
        sampled.extend(found)
        append(self, process, found)

    return counting


def test_a_second_run_on_the_same_output_is_refused_while_the_first_is_at_work(tmp_path):
    first, second = (PartFiles(tmp_path / "o.jsonl", RUN) for _ in range(2))
    with first.lock():
        first.append(0, {0: "x"})
        refused = pytest.raises(OutputError, match=r"o\.jsonl is being written by another run: wait for it, or end it")
        with refused, second.lock():
            pass
    with second.lock():
        assert second.done() == {0: "x"}


def test_what_a_killed_run_left_of_the_output_is_deleted_by_the_next(tmp_path):
    """A hidden file, as long as the output, stayed for ever."""
    for name in (".o.jsonl.77.tmp", ".o.jsonl.mine.tmp", ".p.jsonl.77.tmp"):
        (tmp_path / name).touch()
    PartFiles(tmp_path / "o.jsonl", RUN).finish([{"completion": "x"}])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".o.jsonl.mine.tmp", ".p.jsonl.77.tmp", "o.jsonl"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, REQUEUE), (signal.SIGUSR1, REQUEUE), (signal.SIGINT, 130)]
)
def test_a_signal_ends_with_one_line_and_the_same_command_goes_on(saved, monkeypatch, capsys, number, code):  # noqa: F811
    recipe = generate
    recipe.main(command(saved, "whole.jsonl"))
    append = PartFiles.append

    def then_signalled(self, process, found):
        append(self, process, found)
        os.kill(os.getpid(), number)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(PartFiles, "append", then_signalled)
        with pytest.raises(SystemExit) as stopped:
            recipe.main(command(saved, "cut.jsonl"))
    assert stopped.value.code == code
    line = f"stopped by {number.name}: 2 of 7 answers are kept in {saved / 'cut.jsonl'}.part*, and the same command"
    assert line in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    recipe.main(command(saved, "cut.jsonl"))
    assert (saved / "cut.jsonl").read_text() == (saved / "whole.jsonl").read_text()


@pytest.mark.slow
def test_a_command_that_is_terminated_prints_no_traceback(saved):  # noqa: F811
    """As a process of its own, in the midst of a long answer."""
    long = ["--gen_length", "32", "--steps", "32", "--block_length", "32", "--batch_size", "1"]
    script = [sys.executable, str(ROOT / "recipes" / "generate.py"), *command(saved, "o.jsonl"), *long]
    rows = [json.dumps({"prompt": f"q{index}"}) for index in range(5000)]
    (saved / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    run = subprocess.Popen(
        script, cwd=ROOT, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True
    )
    first, end = saved / "o.jsonl.part0", time.monotonic() + 120
    while not (first.exists() and first.stat().st_size) and time.monotonic() < end:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, error = run.communicate(timeout=60)
    assert run.returncode == REQUEUE
    assert "Traceback" not in error
    assert "stopped by SIGTERM: " in error.splitlines()[-1]
    assert PartFiles(saved / "o.jsonl", {}).done()


def changed_in_the_middle(file) -> None:
    """Two merged adapters: files of the same size, start and end."""
    tensors = load_file(file)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name] = tensors[name].clone()
    tensors[name].flatten()[0] += 1
    save_file(tensors, file, {"format": "pt"})


def edit(file, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


CHANGES = {
    "weights": lambda model: changed_in_the_middle(model / "model.safetensors"),
    "config": lambda model: edit(model / "config.json", rope_theta=20000.0),
    "tokenizer": lambda model: edit(model / "tokenizer_config.json", bos_token="<|start_header_id|>"),
    "chat_template": lambda model: (model / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    ),
}


@pytest.mark.parametrize("recipe", ["generate", "make_pairs"])
@pytest.mark.parametrize("name", CHANGES)
def test_parts_of_another_model_are_refused_by_what_differs(saved, monkeypatch, recipe, name):  # noqa: F811
    """Also where the model's directory has the same name, as after a new merge."""
    main = {"generate": generate, "make_pairs": make_pairs}[recipe].main
    with monkeypatch.context() as patch:
        killed_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            main(command(saved, "cut.jsonl"))
    before = (saved / "cut.jsonl.part0").read_bytes()
    CHANGES[name](saved / "model")
    with pytest.raises(RecipeError, match=rf"part0 was made with {name}='\w+', and this run has '\w+': go on with"):
        main(command(saved, "cut.jsonl"))
    assert (saved / "cut.jsonl.part0").read_bytes() == before


def test_logits_that_are_nan_name_the_file_s_rows(saved):  # noqa: F811
    model = tiny_model(dtype=torch.float32, max_sequence_length=64, **IDS)
    torch.nn.init.constant_(model.model.transformer.wte.weight[TOKENIZER("6").input_ids[0]], torch.nan)
    model.save_pretrained(saved / "model")
    with pytest.raises(
        FloatingPointError,
        match=r"prompts\.jsonl: of the answers to rows 6 to 6 \(counted from 0\), sampled together, row 0: the model's "
        "logits at position",
    ):
        generate.main(command(saved, "o.jsonl"))
    assert len(PartFiles(saved / "o.jsonl", {}).done()) == 6
