"""What a process was started with: its command without secrets, and the versions of packages."""

import platform
import re
from collections.abc import Sequence
from importlib import metadata

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "llada-vrpo")
SECRET = re.compile(r"(^|_)(token|password|secret|api_key|auth)$")  # ends the name of an option that is one
NO_SECRETS = ("eos_token", "pad_token")  # names of tokens of text
HUB_TOKEN = re.compile(r"\bhf_\w{8,}")
HIDDEN = "(left out)"


def is_secret(name: str) -> bool:
    """Whether an option of this name would let others into an account."""
    return bool(SECRET.search(name)) and name not in NO_SECRETS


def command_of(words: Sequence[str]) -> list[str]:
    """The command of this process without secrets: the interpreter is called python, wherever it is."""
    found, hides_next = [], False
    for word in words[1:]:
        name, equals, _ = word.removeprefix("--").replace("-", "_").partition("=")
        secret = word.startswith("--") and is_secret(name)
        found.append(HIDDEN if hides_next else f"{word.partition('=')[0]}={HIDDEN}" if secret and equals else word)
        hides_next = secret and not equals
    return ["python", *(HUB_TOKEN.sub(HIDDEN, word) for word in found)]


def version_of(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages on which a run's numbers depend."""
    return {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES}
