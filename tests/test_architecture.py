"""The rules of the house: imports run downward, math files import torch and each other, files stay short."""

import ast
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# Files of formulas: whole folders, and single files beside others that are not.
FORMULAS = ["llada/diffusion", "vrpo/estimators", "vrpo/losses"]
SINGLE = [
    "llada.checks",
    "llada.kv_cache",
    "llada.denoiser",
    "llada.sampling.selection",
    "llada.sampling.guidance",
    "vrpo.scores",
]
SINGLE += ["vrpo.analysis.variance_sources", "vrpo.gradient_noise", "vrpo.analysis.suggestion"]
ABOVE = {"llada": {"vrpo", "recipes", "examples", "benchmarks"}, "vrpo": {"recipes", "examples", "benchmarks"}}
NEED_TRL = ("cli/recipe.py", "cli/loading.py", "cli/train.py")  # and the recipes
FILES = sorted(path for package in ABOVE for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module in ABOVE else set()
            )
    return names


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


# Rooms from the top down: a room imports only from rooms of later lines (docs/architecture.md).
LEVELS = {
    "llada": [
        ["__main__", "__init__"],
        ["chat", "info", "merge", "recipes"],
        ["cli.train"],
        ["harness"],
        ["cli"],
        ["record"],
        ["training", "sampling"],
        ["data", "models"],
        ["models.common"],
        ["diffusion"],
        ["denoiser", "evaluation", "output"],
        ["checks", "kv_cache", "errors", "files", "intervals", "lazy", "pretrained"],
    ],
    "vrpo": [
        ["__main__", "__init__"],
        ["variance", "check", "recipes"],
        ["analysis"],
        ["training"],
        ["losses", "estimators", "data", "collator", "rollouts"],
        ["scores", "gradient_noise"],
    ],
}
LEVEL = {
    f"{package}.{room}": -depth
    for package, levels in LEVELS.items() for depth, rooms in enumerate(levels) for room in rooms
}  # fmt: skip


def room(name: str) -> str:
    """The room of a module: the longest known prefix of its name; of a package itself, its `__init__`."""
    parts = name.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 1, -1)] + [f"{parts[0]}.__init__"]
    return next(prefix for prefix in prefixes if prefix in LEVEL)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_run_downward(path):
    """Between folders as between packages; the registry and the lazy exports, which import by name, are not read."""
    package, here = path.relative_to(ROOT).parts[0], room(module(path))
    used = imports(path)
    assert not {name.split(".")[0] for name in used} & ABOVE[package]
    if path.name == "__init__.py":
        return
    ours = {room(name) for name in used if name.split(".")[0] == package and name != package} - {here}
    assert not {other for other in ours if LEVEL[other] >= LEVEL[here]}


def test_no_room_is_left_out():
    assert {room(module(path)) for path in FILES} == set(LEVEL)


def path_of(name: str) -> Path:
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


MATH = {module(path) for path in FILES if str(path.parent.relative_to(ROOT)) in FORMULAS} | set(SINGLE)


@pytest.mark.parametrize("name", sorted(MATH))
def test_math_files_import_torch_and_each_other(name):
    allowed = MATH | set(sys.stdlib_module_names) | {"torch", "numpy"}  # numpy: nodes of a quadrature
    assert all(used in allowed or used.split(".")[0] in allowed for used in imports(path_of(name)))


def needs_trl(path: Path) -> bool:
    return path.parent.name == "recipes" or "/".join(path.parts[-2:]) in NEED_TRL


@pytest.mark.parametrize("path", FILES, ids=module)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= (400 if "models" in path.parts else 300)


@pytest.mark.parametrize("path", [path for path in FILES if not needs_trl(path)], ids=module)
def test_only_the_commands_need_trl_and_nothing_needs_deepspeed(path):
    """In Python `llada` works without trl, datasets and deepspeed: imports of them stay inside functions."""
    tree = ast.parse(path.read_text())
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in at_import if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in at_import if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & {"trl", "datasets", "deepspeed"}
