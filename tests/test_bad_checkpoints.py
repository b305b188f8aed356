"""Torn, foreign and unsafe model files: each ends in one message that names the file and what is wrong with it."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_model, tiny_moe
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from test_sft import IDS, TOKENIZER
from test_sft import PAIRS as ROWS
from test_vrpo_trainer import PAIRS
from transformers import AutoModel, AutoModelForCausalLM

from llada import LLaDAModelLM, MaskedDiffusionConfig, MaskedDiffusionTrainer
from llada.cli.checkpoint import load_config, load_merged, load_model
from llada.cli.info import rows
from llada.models.common.lora import add_adapters, wrap_with_adapters
from vrpo import VRPOConfig, VRPOTrainer

FAMILIES = {"dense": tiny_model, "moe": tiny_moe}
NORM = {"dense": "model.transformer.ln_f.weight", "moe": "model.norm.weight"}
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
SECOND = "model-00002-of-0000"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Directories of whole models: of each family in one file, and in shards."""
    folder = tmp_path_factory.mktemp("whole")
    for family, build in FAMILIES.items():
        model = build(dtype=torch.float32, **IDS)
        size = sum(parameter.numel() for parameter in model.parameters()) * 4
        for kind, shard in (("single", "1GB"), ("sharded", size // 2)):
            model.save_pretrained(folder / family / kind, max_shard_size=shard)
            TOKENIZER.save_pretrained(folder / family / kind)
    return folder


def rewritten(name: str, change):
    """A change of the fields of a JSON file, in place."""

    def apply(folder: Path) -> None:
        fields = json.loads((folder / name).read_text())
        change(fields)
        (folder / name).write_text(json.dumps(fields))

    return apply


def tensors(change):
    """A change of the tensors of the single weight file: change(tensors, name of the final norm)."""

    def apply(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found, next(name for name in NORM.values() if name in found))
        save_file(found, folder / WEIGHTS, {"format": "pt"})

    return apply


def shard(change):
    return lambda folder: change(next(folder.glob(f"{SECOND}*.safetensors")))


def moved(places: dict, file: object) -> None:
    places[next(iter(places))] = file


def torn(cut: int):
    return lambda file: file.write_bytes(file.read_bytes()[:cut])


def written(name: str, content: str | bytes):
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(content)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def directory(name: str):
    return lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
UNREADABLE = r"{file} cannot be read \(.*\): it is truncated or not a weight file"
# Of weights: kind of directory, the change, and the message, in which {file} stands for the shard or the single file.
BAD_WEIGHTS = {
    "shard without its end": ("sharded", shard(torn(-100)), UNREADABLE),
    "shard without its last byte": ("sharded", shard(torn(-1)), UNREADABLE),
    "shard torn in its header": ("sharded", shard(torn(20)), UNREADABLE),
    "shard torn in its length": ("sharded", shard(torn(3)), UNREADABLE),
    "empty shard": ("sharded", shard(torn(0)), UNREADABLE),
    "bytes after the end": ("sharded", shard(lambda file: file.write_bytes(file.read_bytes() + b"x")), UNREADABLE),
    "no shard": ("sharded", shard(Path.unlink), rf"{INDEX} names 1 files that are not there: {SECOND}"),
    "zeros": ("single", written(WEIGHTS, bytes(500)), UNREADABLE),
    "noise": ("single", written(WEIGHTS, bytes(range(256)) * 2), UNREADABLE),
    "a page of a web server": ("single", written(WEIGHTS, "<html>404</html>" * 20), UNREADABLE),
    "a pointer of git-lfs": ("single", written(WEIGHTS, POINTER), UNREADABLE),
    "no weights": ("single", lambda folder: (folder / WEIGHTS).unlink(), f"holds no weights: neither {WEIGHTS}"),
    "a directory as weights": ("single", directory(WEIGHTS), f"holds no weights: neither {WEIGHTS}"),
    "index names an absent file": (
        "sharded", rewritten(INDEX, lambda fields: moved(fields["weight_map"], "gone.safetensors")),
        rf"{INDEX} names 1 files that are not there: gone\.safetensors",
    ),
    "index names a file elsewhere": (
        "sharded", rewritten(INDEX, lambda fields: moved(fields["weight_map"], "../other.safetensors")),
        rf"{INDEX} names \.\./other\.safetensors: it may name safetensors files beside it only",
    ),
    "index names a pickle": (
        "sharded", rewritten(INDEX, lambda fields: moved(fields["weight_map"], "model.bin")),
        rf"{INDEX} names model\.bin: it may name safetensors files beside it only",
    ),
    "index names a number": (
        "sharded", rewritten(INDEX, lambda fields: moved(fields["weight_map"], 3)), f"{INDEX} must have a 'weight_map'"
    ),
    "index without a map": ("sharded", written(INDEX, "{}"), f"{INDEX} must have a 'weight_map'"),
    "index with an empty map": ("sharded", written(INDEX, '{"weight_map": {}}'), f"{INDEX} must have a 'weight_map'"),
    "index with a list": ("sharded", written(INDEX, '{"weight_map": [1]}'), f"{INDEX} must have a 'weight_map'"),
    "index is a list": ("sharded", written(INDEX, "[]"), f"{INDEX} must hold a JSON object"),
    "index is empty": ("sharded", written(INDEX, ""), f"{INDEX} is no JSON"),
    "index is torn": ("sharded", written(INDEX, '{"weight_map": {'), f"{INDEX} is no JSON"),
    "index in another encoding": ("sharded", written(INDEX, '{"é": 1}'.encode("latin-1")), f"{INDEX} is no JSON"),
    "a tensor is missing": ("single", tensors(lambda found, norm: found.pop(norm)), "1 tensors missing: {norm}"),
    "a tensor is unknown": (
        "single", tensors(lambda found, norm: found.update(x=found[norm].clone())), "1 tensors not of this model: x"
    ),
    "a tensor of another shape": (
        "single", tensors(lambda found, norm: found.update({norm: found[norm][:5].clone()})),
        r"1 tensors of another shape: {norm} \(5,\) for \(32,\)",
    ),
    "a tensor without elements": (
        "single", tensors(lambda found, norm: found.update({norm: torch.zeros(0)})), r"{norm} \(0,\) for \(32,\)"
    ),
    "integers": (
        "single", tensors(lambda found, norm: found.update({norm: found[norm].long()})),
        "{file}: {norm} is stored as I64, but weights must be F64, F32, F16, BF16",
    ),
    "booleans": (
        "single", tensors(lambda found, norm: found.update({norm: found[norm] > 0})), "{file}: {norm} is stored as BOOL"
    ),
    "names of another model": (
        "single", tensors(lambda found, norm: [found.update({"x." + name: found.pop(name)}) for name in list(found)]),
        "tensors missing",
    ),
    "a pickle": ("single", pickled, r"holds its weights as a pickle \(pytorch_model\.bin\)"),
}  # fmt: skip


def spoilt(whole: Path, folder: Path, family: str, kind: str, change) -> Path:
    target = folder / "model"
    shutil.copytree(whole / family / kind, target)
    change(target)
    return target


@pytest.mark.parametrize("case", BAD_WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_not_whole_are_named(whole, family, case, tmp_path):
    kind, change, message = BAD_WEIGHTS[case]
    folder = spoilt(whole, tmp_path, family, kind, change)
    file = re.escape(str(next(folder.glob(f"{SECOND}*.safetensors"), folder / WEIGHTS)))
    message = message.replace("{file}", file).replace("{norm}", re.escape(NORM[family]))
    for load in (AutoModelForCausalLM.from_pretrained, lambda path: load_model(str(path), load_config(str(path))[1])):
        with pytest.raises(ValueError, match=message):
            load(folder)


# Of config.json: what our commands and trainers say of it.
BAD_CONFIGS = {
    "none": (lambda folder: (folder / CONFIG).unlink(), r"holds no model \(no config\.json\)"),
    "a directory": (directory(CONFIG), r"holds no model \(no config\.json\)"),
    "empty": (written(CONFIG, ""), r"config\.json is no JSON"),
    "torn": (lambda folder: torn(-20)(folder / CONFIG), r"config\.json is no JSON"),
    "utf-16": (written(CONFIG, '{"model_type": "llada"}'.encode("utf-16")), r"config\.json is no JSON"),
    "latin-1": (written(CONFIG, '{"model_type": "llada", "x": "é"}'.encode("latin-1")), r"config\.json is no JSON"),
    "a list": (written(CONFIG, "[1]"), r"config\.json must hold a JSON object \(\{...\}\), but holds '\[1\]'"),
    "null": (written(CONFIG, "null"), r"config\.json must hold a JSON object"),
    "a string": (written(CONFIG, '"llada"'), r"config\.json must hold a JSON object"),
    "no type": (rewritten(CONFIG, lambda fields: fields.pop("model_type")), "model_type=None must be a name"),
    "a number as type": (rewritten(CONFIG, lambda fields: fields.update(model_type=3)), "model_type=3 must be a name"),
    "an unknown type": (
        rewritten(CONFIG, lambda fields: fields.update(model_type="lladb")), "does not recognize this architecture"
    ),
    "a dtype that torch lacks": (
        rewritten(CONFIG, lambda fields: fields.update(dtype="float33")),
        "config field dtype='float33' is not supported: it must be float32, bfloat16, float16, float64 or 'auto'",
    ),
    "a dtype of integers": (
        rewritten(CONFIG, lambda fields: fields.update(torch_dtype="int8")), "config field torch_dtype='int8'"
    ),
    "a number as dtype": (rewritten(CONFIG, lambda fields: fields.update(dtype=3)), "config field dtype=3"),
    "weights elsewhere": (
        rewritten(CONFIG, lambda fields: fields.update(transformers_weights="pytorch_model.bin")),
        r"config field transformers_weights='pytorch_model\.bin' is not supported",
    ),
    "attention of the hub": (
        rewritten(CONFIG, lambda fields: fields.update(attn_implementation="somebody/kernel")),
        "attn_implementation='somebody/kernel' names code of the hub",
    ),
    "experts of the hub": (
        rewritten(CONFIG, lambda fields: fields.update(experts_implementation="somebody/kernel")),
        "experts_implementation='somebody/kernel' names code of the hub",
    ),
}  # fmt: skip


def sft(model, folder: Path, **options):
    args = MaskedDiffusionConfig(str(folder / "out"), use_cpu=True, report_to="none", **options)
    return MaskedDiffusionTrainer(model, args, train_dataset=ROWS[:2], processing_class=TOKENIZER)


def vrpo(model, folder: Path, **options):
    args = VRPOConfig(str(folder / "out"), use_cpu=True, report_to="none")
    return VRPOTrainer(model, args=args, train_dataset=PAIRS[:2], processing_class=TOKENIZER, **options)


@pytest.mark.parametrize("case", BAD_CONFIGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_configs_that_say_nothing_are_named_by_trainers_and_commands(whole, family, case, tmp_path):
    change, message = BAD_CONFIGS[case]
    folder = str(spoilt(whole, tmp_path, family, "single", change))
    good = FAMILIES[family](dtype=torch.float32, **IDS)
    calls = (
        lambda: load_config(folder),
        lambda: rows(folder, 4),
        lambda: sft(folder, tmp_path),
        lambda: vrpo(good, tmp_path, ref_model=folder),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("dtype", ["float33", "int8", "bfloat", 16, torch.int64, torch.bool])
def test_dtypes_that_weights_cannot_have(whole, dtype, tmp_path):
    folder = str(whole / "dense" / "single")
    _, config = load_config(folder)
    for call in (
        lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype),
        lambda: LLaDAModelLM.from_pretrained(folder, dtype=dtype),
        lambda: load_merged(folder, config, dtype),
        lambda: sft(folder, tmp_path, model_init_kwargs={"dtype": dtype}),
    ):
        with pytest.raises(ValueError, match=re.escape(f"dtype={dtype!r} is not supported: it must be float32")):
            call()


@pytest.fixture(scope="module")
def adapters(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    model = AutoModelForCausalLM.from_pretrained(whole / "dense" / "single")
    wrap_with_adapters(model, LoraConfig(r=2, init_lora_weights=False)).save_pretrained(folder)
    return folder


ADAPTERS = "adapter_model.safetensors"


def of_adapters(change):
    def apply(folder: Path) -> None:
        found = load_file(folder / ADAPTERS)
        change(found, min(name for name in found if "lora_A" in name))
        save_file(found, folder / ADAPTERS, {"format": "pt"})

    return apply


def pickled_adapters(folder: Path) -> None:
    torch.save(load_file(folder / ADAPTERS), folder / "adapter_model.bin")
    (folder / ADAPTERS).unlink()


FIRST = r"base_model\.model\.model\.transformer\.blocks\.0\.attn_out\.lora_A"
BAD_ADAPTERS = {
    "torn": (lambda folder: torn(-10)(folder / ADAPTERS), rf"{ADAPTERS} cannot be read"),
    "empty": (written(ADAPTERS, ""), rf"{ADAPTERS} cannot be read"),
    "none": (lambda folder: (folder / ADAPTERS).unlink(), rf"but no weights: no {ADAPTERS}"),
    "a pickle": (pickled_adapters, r"holds its weights as a pickle \(adapter_model\.bin\)"),
    "a tensor is missing": (
        of_adapters(lambda found, first: found.pop(first)),
        rf"does not fit its adapter_config\.json: 1 tensors missing: {FIRST}",
    ),
    "a tensor is unknown": (
        of_adapters(lambda found, first: found.update({"base_model.model.x.lora_A.weight": found[first].clone()})),
        r"1 tensors not of this model: base_model\.model\.x\.lora_A\.weight",
    ),
    "another rank": (
        of_adapters(lambda found, first: found.update({first: torch.zeros(3, 32)})),
        rf"does not fit the model or its adapter_config\.json: size mismatch for {FIRST}",
    ),
    "integers": (of_adapters(lambda found, first: found.update({first: found[first].long()})), "is stored as I64"),
    "config is torn": (written("adapter_config.json", '{"r": '), r"adapter_config\.json is no JSON"),
    "config is a list": (written("adapter_config.json", "[]"), r"adapter_config\.json must hold a JSON object"),
    "config in latin-1": (written("adapter_config.json", b'{"r": "\xe9"}'), r"adapter_config\.json is no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_adapters_that_are_not_whole_are_named(whole, adapters, case, tmp_path):
    """PEFT warns of a missing tensor, ignores an unknown one and rounds numbers of another kind."""
    change, message = BAD_ADAPTERS[case]
    folder = tmp_path / "adapters"
    shutil.copytree(adapters, folder)
    change(folder)
    with pytest.raises(ValueError, match=message):
        add_adapters(AutoModelForCausalLM.from_pretrained(whole / "dense" / "single"), str(folder))
    for call in (
        lambda: load_model(str(folder), load_config(str(folder))[1]),
        lambda: sft(str(folder), tmp_path),
        lambda: vrpo(str(folder), tmp_path),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_whole_adapters_and_models_load(whole, adapters):
    for family in FAMILIES:
        for kind in ("single", "sharded"):
            assert AutoModel.from_pretrained(whole / family / kind).num_parameters() > 0
    add_adapters(AutoModelForCausalLM.from_pretrained(whole / "dense" / "single"), str(adapters))


@pytest.mark.parametrize("part", ["model", "adapters"])
def test_the_lines_that_convert_a_pickle_convert_it(whole, adapters, part, tmp_path):
    """The message is code: run, it leaves a directory that loads, with the same numbers."""
    folder = tmp_path / "pickled"
    shutil.copytree(whole / "dense" / "single" if part == "model" else adapters, folder)
    file = folder / (WEIGHTS if part == "model" else ADAPTERS)
    before = load_file(file)
    (pickled if part == "model" else pickled_adapters)(folder)
    torch.save(object(), folder / "training_args.bin")  # the Trainer's own, which is left out
    base = AutoModelForCausalLM.from_pretrained(whole / "dense" / "single")
    load = AutoModel.from_pretrained if part == "model" else lambda path: add_adapters(base, str(path))
    with pytest.raises(ValueError, match="convert it") as error:
        load(folder)
    lines = str(error.value).partition("convert it:\n")[2].splitlines()
    exec("\n".join(line.removeprefix("    ") for line in lines), {})
    after = load_file(file)
    assert {name: torch.equal(tensor, after[name]) for name, tensor in before.items()} == dict.fromkeys(after, True)
    load(folder)


def test_pickles_are_not_loaded_when_asked_for(whole):
    with pytest.raises(ValueError, match="use_safetensors=False asks for pickled weights"):
        AutoModel.from_pretrained(whole / "dense" / "single", use_safetensors=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(whole, tmp_path):
    folder = spoilt(whole, tmp_path, "dense", "single", lambda folder: (folder / CONFIG).chmod(0))
    with pytest.raises(ValueError, match=r"config\.json cannot be read: Permission denied"):
        load_config(str(folder))
