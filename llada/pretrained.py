"""How a saved model or tokenizer is read: its config says what it is, and no code of its own is run.

transformers asks on the terminal whether to run code that a model brings along (`auto_map`), or raises. Here the answer
is always no: the families and tokenizers of this package are code that is installed. Importing this imports no torch.
"""

import json
from pathlib import Path
from typing import Any


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: the file is missing, is no JSON in UTF-8, or holds no object; the message names it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}): it is truncated, or not the file that was saved") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object ({{...}}), but holds {str(content)[:40]!r}")
    return content


def check_config(name: str) -> None:
    """Raise ValueError if `name` is a directory whose config.json does not say what it holds. A hub name passes."""
    folder = Path(name)
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model (no config.json): name the directory that save_pretrained wrote")
    kind = read_object(folder / "config.json").get("model_type")
    if not isinstance(kind, str):
        raise ValueError(f"{folder / 'config.json'}: model_type={kind!r} must be a name; of our models it is 'llada'")


def unreachable(name: str, error: OSError) -> OSError:
    """The error of a model or tokenizer that is no directory here and that the hub does not give: it names it.

    What transformers says of a hub that cannot be reached does not.
    """
    if Path(name).is_dir():
        return error
    reason = " ".join(str(error).split("\n")[0].split())
    return OSError(f"{name} is no directory here, and was not found on the hub: {reason}")


def from_files(auto_class: Any, name: str, **options: Any) -> Any:
    """`auto_class.from_pretrained(name, ...)` without remote code.

    Args:
        auto_class: one of the Auto classes of transformers. options: arguments of its `from_pretrained`.

    Raises:
        ValueError: the options ask for remote code, or the files need it.
    """
    if options.pop("trust_remote_code", False):
        raise ValueError(
            "trust_remote_code=True is refused: the models of this package are native code, and no code that a model "
            "brings along is run. Leave it out"
        )
    try:
        return auto_class.from_pretrained(name, trust_remote_code=False, **options)
    except ValueError as error:
        if "contains custom code" not in str(error):
            raise
        raise ValueError(
            f"{name} cannot be read by {auto_class.__name__} without code that it brings along (auto_map), which is "
            "not run: docs/checkpoints.md lists the models that load"
        ) from error
