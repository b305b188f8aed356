"""The rules of the house: imports run downward, math files import torch and each other, files stay short."""

import ast
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MATH = {
    "llada.kv_cache", "llada.denoiser", "llada.diffusion.masking", "llada.diffusion.likelihood",
    "llada.diffusion.random_streams", "llada.sampling.selection", "llada.sampling.guidance", "vrpo.scores",
    "vrpo.estimators.baseline", "vrpo.estimators.designs", "vrpo.estimators.published",
    "vrpo.losses.pairwise", "vrpo.losses.noise_bias",
    "vrpo.analysis.variance_sources",
}  # fmt: skip
ABOVE = {"llada": {"vrpo", "recipes", "examples", "benchmarks"}, "vrpo": {"recipes", "examples", "benchmarks"}}
FILES = sorted(path for package in ABOVE for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_run_downward(path):
    package = path.relative_to(ROOT).parts[0]
    assert not {name.split(".")[0] for name in imports(path)} & ABOVE[package]


@pytest.mark.parametrize("name", sorted(MATH))
def test_math_files_import_torch_and_each_other(name):
    allowed = MATH | set(sys.stdlib_module_names) | {"torch", "numpy"}  # numpy: nodes of a quadrature
    assert all(
        used in allowed or used.split(".")[0] in allowed for used in imports(ROOT / (name.replace(".", "/") + ".py"))
    )


@pytest.mark.parametrize("path", FILES, ids=module)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= (400 if "models" in path.parts else 300)


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name != "cli"], ids=module)
def test_only_the_recipes_part_needs_trl_and_nothing_needs_deepspeed(path):
    """`llada` works where trl, datasets and deepspeed are not installed: imports of them stay inside functions."""
    tree = ast.parse(path.read_text())
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in at_import if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in at_import if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & {"trl", "datasets", "deepspeed"}
