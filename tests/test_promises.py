"""What the repository says about itself: every YAML parses, and the README's commands and paths exist."""

import os
import re
import shlex
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT
from trl import ModelConfig

import llada.__main__
import vrpo.__main__
from llada.cli.recipe import RecipeArguments, parse
from llada.training.sft import MaskedDiffusionConfig
from vrpo import DESIGNS, VRPOConfig
from vrpo.recipes import iterate

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
README = (ROOT / "README.md").read_text()


def recipe_of(path) -> str:
    """The script that the YAML's own header runs it with."""
    return re.search(
        r"(?:accelerate launch|python) .*?recipes/(\w+)\.py --config recipes/" + re.escape(path.name), path.read_text()
    )[1]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_yaml_names_its_command_and_parses(path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    at = ["--config", str(path), "--use_cpu", "true"]
    if recipe_of(path) == "iterate":
        recipe, model_args, args, _ = iterate.options(at, prompts="a", reward="b.py:c")
    else:
        configuration = {"align": VRPOConfig}.get(recipe_of(path), MaskedDiffusionConfig)
        recipe, model_args, args = parse((RecipeArguments, ModelConfig, configuration), at)
    settings = yaml.safe_load(path.read_text())
    assert (recipe.architecture is None) != (model_args.model_name_or_path is None)
    assert args.output_dir == f"runs/{path.stem}"
    assert args.learning_rate == float(settings["learning_rate"])


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_every_accelerate_config_loads(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == {"single": 1, "ddp_cpu": 2}.get(path.stem, 8)


HARNESS = "llada.harness.__main__"  # lm-evaluation-harness prints its own help, for which it imports torch
CONSOLE = [
    f"-m {package.__name__.partition('.')[0]} {name}"
    for package in (llada.__main__, vrpo.__main__)
    for name, (module, _) in package.COMMANDS.items()
    if module != HARNESS
]
COMMANDS = ["-m llada", "-m vrpo", "-m llada.chat", "recipes/align.py", *CONSOLE]


@pytest.mark.parametrize("command", ["-c 'import llada, vrpo'", *(f"{command} --help" for command in COMMANDS)])
def test_importing_and_asking_for_help_do_not_wait_for_torch_nor_transformers(command):
    """Each takes longer than all the rest; -X importtime lists what was imported."""
    found = subprocess.run([sys.executable, "-X", "importtime", *shlex.split(command)], cwd=ROOT, capture_output=True,
                           text=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert found.returncode == 0, found.stderr[-1000:]
    assert not re.search(r"\| +(torch|transformers)$", found.stderr, re.M)
    assert "--help" not in command or "--" in found.stdout


def test_the_help_of_estimator_names_every_design():
    """Written out there, because importing the designs would import torch."""
    help = VRPOConfig.__dataclass_fields__["estimator"].metadata["help"]
    assert {word.strip(",.") for word in help.split()} >= set(DESIGNS)


def test_paths_and_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make ([\w-]+)", README, re.M)
    assert {"quickstart", "test"} <= set(targets)
    assert all(f"\n{target}:" in makefile for target in targets)
    paths = set(re.findall(r"(?:recipes|examples|benchmarks|docs|llada|vrpo|tests)/[\w/.]+\.(?:py|yaml|md)", README))
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_file_tree_of_the_readme_is_the_repository_s():
    """Folder by folder: the lines below a folder's name list its Python files and no others."""
    tree = README.split("## Layout")[1].split("```")[1]
    listed: dict[str, set[str]] = {}
    folder = package = ""
    for line in tree.splitlines():
        if match := re.match(r"(\w+)/ ", line):
            folder = package = match[1]
        elif match := re.match(r"  (\w+)/ ", line):
            folder = f"{package}/{match[1]}"
        elif match := re.match(r"    (\w+)/ ", line):
            folder = f"{folder.rsplit('/common')[0]}/{match[1]}"
        elif re.match(r"  \w", line):
            folder = package
        listed.setdefault(folder, set()).update(re.findall(r"\b(\w+\.py)\b", line))
    for root in ("llada", "vrpo", "recipes", "examples", "benchmarks"):
        for path in [ROOT / root, *(path for path in (ROOT / root).rglob("*") if path.is_dir())]:
            files = {file.name for file in path.glob("*.py")} - {"__init__.py"}
            name = str(path.relative_to(ROOT))
            assert files == listed.get(name, set()), name


DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "recipes" / "README.md"]


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_the_documents_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(found.read_text()), f"{path.name}: {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_other_sites_are_well_formed(path):
    """Their form only: tests do not use a network."""
    for address in re.findall(r"\]\((https?:[^)]*)\)", path.read_text()):
        parts = urlsplit(address)
        assert parts.scheme == "https", address
        assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), address
        assert not re.search(r"\s|[.,;]$", address), address
