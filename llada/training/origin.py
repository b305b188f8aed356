"""What a process was started with: its command without secrets, and the versions of packages."""

import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "llada-vrpo")
SECRET = re.compile(r"(^|_)(token|password|secret|api_key|auth)$")  # ends the name of an option that is one
NO_SECRETS = ("eos_token", "pad_token")  # names of tokens of text
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")
FIELD = re.compile(r"""(["']?)(\w+)\1\s*:\s*("[^"]*"|'[^']*'|[^,{}\s]+)""")  # of a mapping in JSON or YAML
HIDDEN = "(left out)"
CONSOLE = ("llada", "vrpo")  # programs of this package


def is_secret(name: str) -> bool:
    """Whether an option of this name would let others into an account."""
    return bool(SECRET.search(name)) and name not in NO_SECRETS


def without_secrets(text: str) -> str:
    """A text without tokens of the hub and, if it holds a mapping, without the values of its secret fields."""

    def field(found: re.Match[str]) -> str:
        return found[0].removesuffix(found[3]) + f'"{HIDDEN}"' if is_secret(found[2]) else found[0]

    return HUB_TOKEN.sub(HIDDEN, FIELD.sub(field, text) if "{" in text else text)


def command_of(words: Sequence[str]) -> list[str]:
    """The command of this process without secrets, and without the places of Python and of the console commands.

    Args:
        words: the interpreter, what it runs, and the arguments, as in `sys.orig_argv`.
    """
    found, hides_next = [], False
    for word in words[1:]:
        name, equals, _ = word.removeprefix("--").replace("-", "_").partition("=")
        secret = word.startswith("--") and is_secret(name)
        found.append(HIDDEN if hides_next else f"{word.partition('=')[0]}={HIDDEN}" if secret and equals else word)
        hides_next = secret and not equals
    shown = [without_secrets(word) for word in found]
    console = Path(shown[0]).name if shown else ""
    return [console, *shown[1:]] if console in CONSOLE else ["python", *shown]


def version_of(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages on which a run's numbers depend."""
    return {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES}
