"""README and documentation: each block of Python and shell is run on tiny models, is an excerpt, or says why not."""

import io
import json
import os
import random
import re
import shutil

import pytest
import torch
import yaml
from conftest import ROOT, tiny_model
from documents import PAGES, blocks_of, flaw_of, is_excerpt, run_shell
from peft import LoraConfig
from test_sft import IDS, TOKENIZER

import llada
import vrpo
from llada.sampling.settings import SamplerSettings

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCKS = {name: blocks_of((ROOT / name).read_text()) for name in NAMES}
RUN = {name: [block for block in blocks if block.kind == "run"] for name, blocks in BLOCKS.items()}
# Names that stand for models, files and directories in the documents. Each is there under this very name.
MODELS = ("PATH", "POLICY", "REFERENCE", "A", "B", "GSAI-ML/LLaDA-8B-Instruct", "runs/tiny_pretrain", "runs/tiny_sft")
FUNCTIONS = """
def function(row, answer):
    return sum(map(ord, answer))


class Class:
    def judge(self, prompts, completions, shuffle_order=True):
        return [int(len(second) > len(first)) for first, second in completions]
"""
# The recipes' own settings, but for sizes and what needs an accelerator.
ALWAYS = {"max_steps": 2, "use_cpu": True}
TINY = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 4, "gradient_accumulation_steps": 2}
TINY |= {"bf16": False, "activation_checkpointing": False, "max_length": 128, "warmup_steps": 1, "eval_draws": 1}
TINY |= {"gen_length": 2, "block_length": 2, "steps": 2, "expected_processes": 1}
SMALL = {"d_model": 16, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 24, "max_sequence_length": 1024}


def write_rows(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def shrunk(settings: dict) -> dict:
    """A recipe's settings in the tiny setting."""
    smaller = settings | {name: value for name, value in TINY.items() if name in settings} | ALWAYS
    if "architecture" in settings:
        smaller["architecture"] = settings["architecture"] | SMALL
    return smaller


def speller(seed: int) -> llada.LLaDAModelLM:
    """A random model that writes a's and b's, or c's and d's, at random, so that some of its answers are right."""
    model = tiny_model(seed, torch.float32, n_layers=1, max_sequence_length=1024, **IDS)
    head_VD = model.get_output_embeddings().weight.data
    direction_D = head_VD[0] / head_VD[0].norm()
    head_VD.zero_()
    for sign, token in zip((10, 10, -10, -10), TOKENIZER("abcd")["input_ids"], strict=True):
        head_VD[token] = sign * direction_D
    return model


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with all models, files and recipes that the documents name."""
    folder = tmp_path_factory.mktemp("documents")
    for seed, name in enumerate(MODELS):
        speller(seed).save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
        SamplerSettings(steps=2, gen_length=2, block_length=2).save(folder / name)
    base = llada.LLaDAModelLM.from_pretrained(folder / "PATH")
    llada.wrap_with_adapters(base, LoraConfig(r=2)).save_pretrained(folder / "ADAPTER")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcde", k=4)) for _ in range(8)]
    write_rows(folder / "FILE.jsonl", [{"prompt": f"q{word}", "completion": word} for word in words])
    write_rows(
        folder / "PROMPTS.jsonl", [{"prompt": f"q{word}", "answer": draw.choice(("ab", "cd"))} for word in words]
    )
    pairs = [{"prompt": f"q{word}", "chosen": word, "rejected": word[::-1] + "e"} for word in words[:4]]
    for name in ("PAIRS.jsonl", "HELD_OUT.jsonl", "trl-lib/ultrafeedback_binarized/train.jsonl"):
        write_rows(folder / name, pairs)
    write_rows(folder / "trl-lib/ultrafeedback_binarized/test.jsonl", pairs)
    (folder / "FILE.txt").write_text("To be, or not to be.\n" * 400)
    (folder / "FILE.py").write_text(FUNCTIONS)
    for name in ("examples", "llada"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for path in (folder / "recipes").glob("*.yaml"):
        path.write_text(yaml.safe_dump(shrunk(yaml.safe_load(path.read_text()))))
    run = yaml.safe_load((folder / "recipes" / "tiny_vrpo.yaml").read_text())
    (folder / "RUN.yaml").write_text(yaml.safe_dump(run | {"dataset_name": "PAIRS.jsonl"}))
    return folder


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    """Work in a copy of that folder, as a process that has just begun, and leave nothing behind."""
    # The environment that commands set, and designs and losses that pages add.
    kept = [(table, dict(table)) for table in (os.environ, vrpo.DESIGNS, vrpo.LOSSES)]
    shutil.copytree(prepared, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nexit\n"))  # of a dialogue
    yield
    for table, before in kept:
        table.clear()
        table.update(before)


def run_page(name: str, slow: bool, monkeypatch) -> None:
    """Run the blocks of a page in their order; with `slow` those too that only slow tests run."""
    blocks = [block for block in BLOCKS[name] if block.title or (block.kind == "run" and (slow or not block.slow))]
    for model in ("tiny_pretrain", "tiny_sft"):  # a page that trains it does not find it
        if any(f"{model}.yaml" in block.text for block in blocks):
            shutil.rmtree(f"runs/{model}")
    for block in blocks:
        try:
            if block.title:
                with open(block.title, "w") as file:
                    file.write(block.text)
            elif block.language == "python":
                exec(compile(block.text, f"{name}:{block.line}", "exec"), {"__name__": "__main__"})
            else:
                run_shell(block.text, monkeypatch)
        except BaseException as error:
            error.add_note(f"in the block of {name} that begins in line {block.line}")
            raise


@pytest.mark.filterwarnings("default")  # commands run as for a user, whom warnings do not stop
@pytest.mark.parametrize("name", [name for name in NAMES if any(not block.slow for block in RUN[name])])
def test_the_blocks_of_a_page_run(name, here, monkeypatch):
    run_page(name, False, monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [name for name in NAMES if any(block.slow for block in RUN[name])])
def test_all_blocks_of_a_page_run(name, here, monkeypatch):
    run_page(name, True, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_run_or_says_why_not(name):
    flaws = {block.line: flaw for block in BLOCKS[name] if (flaw := flaw_of(block))}
    assert not flaws, f"{name}, by line: {flaws}"


@pytest.mark.parametrize("name", [name for name in NAMES if any(block.kind == "from" for block in BLOCKS[name])])
def test_excerpts_stand_in_their_files(name):
    """What a page shows of the source is what the source says now."""
    wrong = [
        f"{name}:{block.line} is not in {block.detail}"
        for block in BLOCKS[name]
        if block.kind == "from" and not is_excerpt(block.text, (ROOT / block.detail).read_text())
    ]
    assert not wrong


def test_an_excerpt_is_found_by_its_lines_and_no_other():
    source = "def f():\n    a = 1\n    b = 2\n    return a\n"
    assert is_excerpt("a = 1\n# ...\nreturn a\n", source)
    assert not is_excerpt("a = 1\nreturn a\n", source)
    assert not is_excerpt("return a\n# ...\na = 1\n", source)


def test_marks_in_the_documents_are_read():
    """A mark that is misspelled, or does not stand right before its block, would be taken for none."""
    for name in NAMES:
        text = (ROOT / name).read_text()
        written = re.findall(r"^<!-- (?:run|not run|from)\b.*$", text, re.M)
        assert len(written) == sum(block.kind is not None for block in BLOCKS[name]), name
        assert not re.search(r"^ +```|^ *~~~", text, re.M), f"{name}: a fence begins its line with ```"
