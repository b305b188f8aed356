"""Every option of the installed TRL is honoured, or accepted at its default and refused otherwise.

`python tests/test_trl_options.py` writes the tables of docs/trl.md; the tests fail where a new TRL has other options.
"""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from llada import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo import VRPOConfig, VRPOTrainer

DOCS = Path(__file__).resolve().parent.parent / "docs" / "trl.md"
PAIRS = [(DPOConfig, VRPOConfig), (SFTConfig, MaskedDiffusionConfig)]
IDS = ["dpo", "sft"]
MARK = "compare it. -->\n"


def defaults(config: type) -> dict:
    """The default of each option."""
    missing = dataclasses.MISSING
    return {
        field.name: field.default if field.default_factory is missing else field.default_factory()
        for field in dataclasses.fields(config)
        if field.default is not missing or field.default_factory is not missing
    }


def own_options(config: type) -> list[str]:
    """The options that a configuration of TRL adds to `TrainingArguments`."""
    return [name for name in defaults(config) if name not in defaults(TrainingArguments)]


def help_of(config: type, name: str) -> str:
    fields = {field.name: field for field in dataclasses.fields(config)}
    return fields[name].metadata.get("help", "").split(". ")[0].rstrip(".")


def rows(theirs: type, ours: type) -> list[str]:
    """The rows of the table of options: the option, (a) or (b), and what it does or why it is refused."""
    lines = []
    for name in own_options(theirs):
        if name in ours.refused:
            lines.append(f"| `{name}` | b | {ours.refused[name][1].split('. ')[0].rstrip('.')} |")
        else:
            lines.append(f"| `{name}` | a | {help_of(ours, name)} |")
    return lines


def other_defaults(theirs: type, ours: type) -> list[str]:
    """The rows of the table of options that both have with another default."""
    mine, trl = defaults(ours), defaults(theirs)
    return [
        f"| `{name}` | {mine[name]} | {trl[name]} |" for name in sorted(trl) if name in mine and mine[name] != trl[name]
    ]


def tables() -> str:
    text = []
    for theirs, ours in PAIRS:
        text += ["", f"## Options of {theirs.__name__} in {ours.__name__}", ""]
        text += ["(a) honoured, (b) refused unless at TRL's default.", ""]
        text += ["| option | | what it does, or why it is refused |", "|---|---|---|", *rows(theirs, ours)]
        text += [
            "",
            "Other defaults:",
            "",
            "| option | here | in TRL |",
            "|---|---|---|",
            *other_defaults(theirs, ours),
        ]
    return "\n".join(text) + "\n"


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=IDS)
def test_every_option_of_trl_is_known(theirs, ours):
    missing = set(own_options(theirs)) - set(defaults(ours))
    assert not missing, f"options of TRL's {theirs.__name__} without a decision here: {sorted(missing)}"


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=IDS)
def test_a_script_may_state_trl_s_defaults(tmp_path, theirs, ours):
    """All of TRL's own options at TRL's values, as a script that states them does."""
    values = {name: defaults(theirs)[name] for name in own_options(theirs)}
    args = ours(output_dir=str(tmp_path), report_to="none", use_cpu=True, **values)
    honoured = {name: value for name, value in values.items() if name not in ours.refused}
    changed = {name: (value, getattr(args, name)) for name, value in honoured.items() if getattr(args, name) != value}
    # "auto" becomes the number that it means, a list of losses gets its weights
    assert set(changed) <= {"pad_to_multiple_of", "loss_weights"}


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=IDS)
def test_what_is_refused_is_accepted_at_trl_s_default_and_named(tmp_path, theirs, ours):
    for name, (accepted, reason) in ours.refused.items():
        assert defaults(theirs)[name] in accepted, name
        assert len(reason) > 20
        with pytest.raises(ValueError, match=f"^{name}='another' is refused: {re.escape(reason)}"):
            ours(output_dir=str(tmp_path), report_to="none", use_cpu=True, **{name: "another"})


@pytest.mark.parametrize(("theirs", "ours"), [(DPOTrainer, VRPOTrainer), (SFTTrainer, MaskedDiffusionTrainer)], ids=IDS)
def test_the_constructor_has_trl_s_arguments_in_trl_s_order(theirs, ours):
    assert list(inspect.signature(ours.__init__).parameters) == list(inspect.signature(theirs.__init__).parameters)


def test_the_tables_of_the_docs_are_those_of_the_installed_trl():
    assert DOCS.read_text().partition(MARK)[2] == tables(), "run `python tests/test_trl_options.py`"


if __name__ == "__main__":
    DOCS.write_text(DOCS.read_text().partition(MARK)[0] + MARK + tables())
