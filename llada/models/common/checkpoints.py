"""Strict loading of weights: safetensors only, and exactly the tensors of the model, or an error that names the file.

transformers only warns and initialises a missing tensor at random; a model with a random layer trains and samples, so
the mistake would go unnoticed. A file that cannot be read is named, which the loader's own message does not do. Weights
that only a pickle holds are refused: unpickling can run code, and a pickle of tensors has a safe equivalent.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llada.pretrained import read_object

SHOWN = 8  # at most this many names are listed in a message
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTERS = "adapter_config.json", "adapter_model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
OF_TRAINING = ("training_args.bin", "optimizer.", "scheduler.", "scaler.", "rng_state")  # a Trainer's, not weights
STORED = ("F64", "F32", "F16", "BF16")  # dtypes of weights that are not quantized


def listed(names) -> str:
    names = sorted(map(str, names))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def check_source(source: str, options: dict[str, Any]) -> None:
    """Check the files of a model that is to be loaded, and of adapters that come with it (`check_weights`).

    Args:
        source: name or path of the checkpoint; of a hub name, files are checked as they are loaded.
        options: the arguments of `from_pretrained`.
    """
    adapters = (options.get("adapter_kwargs") or {}).get("_adapter_model_path")  # transformers has found them
    if adapters is not None:
        check_adapter_files(str(adapters))
    folder, config = Path(source, options.get("subfolder") or ""), options.get("config")
    if not folder.is_dir() or any(options.get(name) is not None for name in ("state_dict", "variant")):
        return
    fields = read_object(folder / "config.json") if config is None or isinstance(config, str) else vars(config)
    check_weights(folder, quantized=fields.get("quantization_config") is not None)


def check_weights(folder: Path, quantized: bool = False) -> None:
    """Raise ValueError unless a directory has whole safetensors weights; only headers are read.

    Args:
        quantized: whether the config says so; the weights may then be integers.
    """
    if (folder / SINGLE).is_file():
        files = [folder / SINGLE]
    elif (folder / INDEX).is_file():
        files = indexed(folder / INDEX)
    else:
        refuse_pickles(folder, SINGLE)
        raise ValueError(f"{folder} holds no weights: neither {SINGLE} nor {INDEX}")
    for file in files:
        check_stored(file, quantized)


def indexed(index: Path) -> list[Path]:
    """The weight files that an index names.

    Raises:
        ValueError: the index is broken, or names a file that is absent, elsewhere or no safetensors file.
    """
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} must have a 'weight_map' from the name of each tensor to the name of its file")
    names = sorted(set(places.values()))
    if foreign := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise ValueError(f"{index} names {listed(foreign)}: it may name safetensors files beside it only")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(f"{index} names {len(absent)} files that are not there: {listed(absent)}")
    return [index.parent / name for name in names]


def check_stored(file: Path, quantized: bool = False) -> None:
    """Raise ValueError if a weight file cannot be read, or holds integers without being `quantized`."""
    for name, dtype in dtypes(file).items():
        if dtype not in STORED and not quantized:
            raise ValueError(f"{file}: {name} is stored as {dtype}, but weights must be {', '.join(STORED)}")


def dtypes(file: Path) -> dict[str, str]:
    """The names of the tensors in a safetensors file and their dtypes as the format spells them, from its header.

    Raises:
        ValueError: the file is truncated or of another format.
    """
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error}): it is truncated or not a weight file") from error


def refuse_pickles(folder: Path, wanted: str) -> None:
    """Raise ValueError if a directory has pickles that may hold its weights; the message says how to convert them."""
    found = sorted({file.name for pattern in PICKLES for file in folder.glob(pattern)})
    found = [name for name in found if not name.startswith(OF_TRAINING)]
    if not found:
        return
    raise ValueError(
        f"{folder} holds its weights as a pickle ({listed(found)}), and unpickling can run code: only safetensors are "
        "loaded. If you trust where it is from, convert it:\n"
        "    import torch\n"
        "    from safetensors.torch import save_file\n"
        "    tensors = {}\n"
        f"    for name in {found!r}:\n"
        f'        tensors |= torch.load(f"{folder}/{{name}}", map_location="cpu", weights_only=True)\n'
        "    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}\n"
        f'    save_file(tensors, "{folder / wanted}", {{"format": "pt"}})'
    )


def check_adapter_files(folder: str) -> None:
    """Raise ValueError unless a directory has an adapter config and whole safetensors adapters. A hub name passes."""
    path = Path(folder)
    if not path.is_dir():
        return
    read_object(path / ADAPTER_CONFIG)
    if not (path / ADAPTERS).is_file():
        refuse_pickles(path, ADAPTERS)
        raise ValueError(f"{path} holds an {ADAPTER_CONFIG} but no weights: no {ADAPTERS}")
    check_stored(path / ADAPTERS)


@contextlib.contextmanager
def adapter_errors(folder: str):
    """Turn torch's error on adapters of other shapes into a ValueError that names the directory and the tensors.

    PEFT's warning of missing tensors is silenced for a directory, since `check_adapter_tensors` raises there.
    """
    try:
        with warnings.catch_warnings():
            if Path(folder).is_dir():
                warnings.filterwarnings("ignore", "Found missing adapter keys")
            yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        if not lines:
            raise
        shown = "; ".join(lines[:SHOWN])
        raise ValueError(f"{folder} does not fit the model or its {ADAPTER_CONFIG}: {shown}") from error


def check_adapter_tensors(wrapped: Any, folder: str) -> None:
    """Raise ValueError unless the file in a directory had exactly the tensors of a `peft.PeftModel`'s adapters.

    PEFT only warns of a tensor that is missing, which stays at its initial value, and ignores one that it does not
    know. Adapters may come with the model's embeddings, which PEFT saves with them. A hub name passes.
    """
    from peft import get_peft_model_state_dict

    if not Path(folder).is_dir():
        return
    found = set(dtypes(Path(folder, ADAPTERS)))
    wanted = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    unknown = found - wanted - set(wrapped.state_dict())
    info = {"missing_keys": wanted - found, "unexpected_keys": unknown, "mismatched_keys": ()}
    check_loading_info(info, folder, ADAPTER_CONFIG)


def check_loading_info(info: dict, source: str, config: str = "config.json") -> None:
    """Raise ValueError unless the checkpoint had exactly the tensors of the model.

    Args:
        info: the loading info of `from_pretrained(..., output_loading_info=True)`.
        source: name or path of the checkpoint. config: the file in it that says which tensors there must be.
    """
    problems = {
        "missing": info["missing_keys"],
        "not of this model": info["unexpected_keys"],
        "of another shape": [
            f"{name} {tuple(found)} for {tuple(wanted)}" for name, found, wanted in info["mismatched_keys"]
        ],
    }
    found = [f"{len(names)} tensors {what}: {listed(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(f"{source} does not fit its {config}: " + "; ".join(found))


@contextlib.contextmanager
def explain_load_errors(source: str, expected: Callable[[], Iterable[str]]):
    """Turn a loader's error into one that names the tensors at fault.

    Args:
        source: name or path of the checkpoint.
        expected: returns the names of the tensors that the files must have.

    Raises:
        ValueError: a local directory lacks tensors. Other errors pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        names = {name for file in Path(source).glob("*.safetensors") for name in dtypes(file)}
        missing = set(expected()) - names if names else set()
        if missing:
            raise ValueError(f"{source} lacks {len(missing)} tensors: {listed(missing)}") from error
        raise
