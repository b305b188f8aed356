"""Which roles of messages a chat template knows, and whether it renders every message.

A template such as LLaDA's writes any role into a turn's header, so that "human" for "user" would train turns that no
model has seen. Known are the roles that transformers documents, and those that the template itself names.
"""

import re
from collections.abc import Callable
from typing import Any

from llada.errors import PairError

ROLES = ("system", "user", "assistant", "tool")
COMPARED_ROLE = re.compile(r"""role['"\]]*\s*(?:==|!=)\s*['"]([\w-]+)['"]""")
UNKNOWN_ROLE = "have messages in {part} of a role that the chat template does not know"
NOT_SHOWN = "have messages in {part} that the chat template does not render"
TOOL_RESULTS_IGNORED = "have messages of role 'tool' in {part}, which the chat template does not render"


def check_role(part: str, role: str, template: str) -> None:
    """Raise PairError if a role is neither one of `ROLES` nor a string that the template names."""
    if role not in ROLES and f"'{role}'" not in template and f'"{role}"' not in template:
        known = sorted({*ROLES, *COMPARED_ROLE.findall(template)})
        raise PairError(part, UNKNOWN_ROLE, f"{role!r}; known are {', '.join(known)}")


def check_shown(
    part: str, messages: list[dict[str, Any]], index: int, text: str, same: Callable[[str, list[dict]], bool]
) -> None:
    """Raise PairError if a message is left out by the template: `text` is the same without it.

    same: whether messages are rendered to `text`. It is asked for results of tools, which may be short, and for
    messages whose content does not stand in `text`.
    """
    role, content = messages[index]["role"], (messages[index].get("content") or "").strip()
    if (role == "tool" or content not in text) and same(part, messages[:index] + messages[index + 1 :]):
        if role == "tool":
            raise PairError(part, TOOL_RESULTS_IGNORED)
        raise PairError(part, NOT_SHOWN, f"role {role!r}")
