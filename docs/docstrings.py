"""How docstrings become the pages of the API: fields that are listed in them, and the help of options.

Docstrings list fields and settings as lines "name: what it is". In Markdown these would run together into a paragraph,
so each becomes an item of a list. An option is a field of a dataclass with a `help`, which the command line prints;
here it is the docstring of the field.
"""

import ast
import re
from typing import Any

from griffe import Attribute, Docstring, Expr, Extension, Object

LISTED = re.compile(r"^([a-z]\w*(?:, [a-z]\w*)*): (?=\S)")
AN_OPTION = re.compile(r"\bfield\(.*\bmetadata=", re.S)


def as_list(text: str) -> str:
    """Make a Markdown list of the lines "name: what it is" that are not indented."""
    lines: list[str] = []
    for line in text.splitlines():
        item = LISTED.sub(lambda found: f"- `{found[1].replace(', ', '`, `')}`: ", line)
        if item != line and lines and lines[-1].strip() and not lines[-1].startswith(("- ", "    ")):
            lines.append("")  # a list begins after an empty line
        lines.append(item)
    return "\n".join(lines)


def help_of(value: str) -> str | None:
    """The help of `field(default=..., metadata={"help": ...})`; None if there is none that is written out there."""
    call = ast.parse(value, mode="eval").body
    metadata = next((word.value for word in getattr(call, "keywords", []) if word.arg == "metadata"), None)
    if not isinstance(metadata, ast.Dict):
        return None
    entries = {getattr(key, "value", None): text for key, text in zip(metadata.keys, metadata.values, strict=True)}
    try:
        return ast.literal_eval(entries["help"])
    except (KeyError, ValueError):
        return None


class ReadableDocstrings(Extension):
    """Rewrites docstrings of the loaded packages for mkdocstrings."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_list(obj.docstring.value)

    def on_attribute_instance(self, *, attr: Attribute, **kwargs: Any) -> None:
        if not isinstance(attr.value, Expr) or not AN_OPTION.match(value := str(attr.value)):
            return
        if help := help_of(value):
            attr.docstring = Docstring(help, parent=attr)
            default = re.match(r"field\(default=(.*?), metadata=", value, re.S)
            attr.value = default[1] if default else None
