"""Every field of every configuration takes its boundaries, and what is beyond them ends in an error that names it."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Annotated, get_type_hints

import option_rows as rows
import pytest
import torch
from transformers import PreTrainedConfig, TrainingArguments
from trl import ModelConfig

from llada import LLaDAConfig, LLaDAMoEConfig, MaskedDiffusionConfig, SamplerSettings
from llada.checks import Range, as_mapping, check, own_fields
from llada.cli.recipe import RecipeArguments, parse
from llada.data.collator import Collator
from llada.denoiser import DenoiserSpec
from llada.diffusion.baseline import leave_one_out
from llada.diffusion.likelihood import exact_elbo, log_likelihood
from llada.diffusion.masking import draw_masks
from llada.diffusion.random_streams import generator_for, response_generators
from llada.diffusion.scoring import ScoreSettings
from llada.errors import RecipeError
from llada.harness.settings import HarnessSettings
from llada.training.config import INHERITED
from vrpo import VRPOConfig
from vrpo.analysis.settings import Settings, TableArguments
from vrpo.estimators.designs import ComposedDesign, design
from vrpo.estimators.published import Mirror
from vrpo.losses.divergences import divergence_score
from vrpo.losses.pairwise import PreferenceLoss
from vrpo.recipes import iterate as ITERATE
from vrpo.scores import length_weights

TRAINING = dict(output_dir="unused", report_to="none", use_cpu=True)
DENSE = dict(d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=48, vocab_size=40, embedding_size=40)
MOE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_experts=4, num_experts_per_tok=2)
FLAGS = {  # at their defaults: the other value of some needs a device, a hub or another option
    name: rows.flag(getattr(VRPOConfig, name), none=kind is not bool)
    for name, kind in INHERITED.items()
    if kind in (bool, bool | None)
}
ARGUMENTS = rows.INHERITED | FLAGS
# For each configuration: its rows, what builds it, and the arguments that a field needs beside it.
CONFIGS = {
    "MaskedDiffusionConfig": (rows.SFT, partial(MaskedDiffusionConfig, **TRAINING)),
    "VRPOConfig": (rows.VRPO, partial(VRPOConfig, **TRAINING)),
    "TrainingArguments": (ARGUMENTS, partial(VRPOConfig, **TRAINING)),
    "RecipeArguments": (rows.RECIPE, RecipeArguments),
    "iterate.py": (rows.ITERATE, partial(ITERATE.Arguments, prompts="a")),
    "SamplerSettings": (rows.SAMPLER, SamplerSettings),
    "ScoreSettings": (rows.SCORE, ScoreSettings),
    "HarnessSettings": (rows.HARNESS, partial(HarnessSettings, **{"pretrained": "a"})),
    "Settings": (rows.VARIANCE, Settings),
    "TableArguments": (rows.TABLE, partial(TableArguments, model="a", ref_model="b", data="c", output="unused")),
    "PreferenceLoss": (rows.LOSS, partial(PreferenceLoss, ("sigmoid", "sft"), (1.0, 1.0), 0.2)),
    "ComposedDesign": (rows.DESIGN, ComposedDesign),
    "Mirror": (rows.ROW_DESIGN, Mirror),
    "LLaDAConfig": (rows.DENSE, partial(LLaDAConfig, **DENSE)),
    "LLaDAMoEConfig": (rows.MOE, partial(LLaDAMoEConfig, vocab_size=40, **MOE)),
    "DenoiserSpec": (rows.SPEC, partial(DenoiserSpec, mask_id=39, context=8, vocabulary=40)),
}
NEEDS = {
    "refresh_every": {"cache": "dual"},
    "baseline_slope": {"baseline_prior": 0.1},
    "eval_tasks_args": {"eval_tasks": ["a"]},
    "eval_tasks_limit": {"eval_tasks": ["a"]},
}
CALLED = {"names": "loss_type", "weights": "loss_weights"}  # PreferenceLoss, by the names of the trainer's options
FIELDS = [(config, field) for config, (table, _) in CONFIGS.items() for field in table]


def builder(config: str, field: str):
    """The function that builds a configuration with a value of a field."""
    build, needs = CONFIGS[config][1], NEEDS.get(field, {})
    if config == "PreferenceLoss":  # its first fields are given by position
        given = dict(names=("sigmoid", "sft"), weights=(1.0, 1.0), beta=0.2) | needs
        return lambda value: PreferenceLoss(**(given | {field: value}))
    return lambda value: build(**(needs | {field: value}))


@pytest.mark.parametrize(("config", "field"), FIELDS)
def test_every_field_takes_its_boundaries_and_refuses_what_is_beyond(config, field):
    good, bad = CONFIGS[config][0][field]
    build = builder(config, field)
    for value in good:
        build(value)
    for value in bad:
        names = [CALLED.get(field, field), *(value if isinstance(value, dict) else ())]
        with pytest.raises(ValueError, match=rf"\b({'|'.join(names)})\b") as error:
            build(value)
        assert len(str(error.value).splitlines()) == 1


def test_no_field_is_without_a_row():
    owners = {
        "MaskedDiffusionConfig": own_fields(MaskedDiffusionConfig, TrainingArguments),
        "VRPOConfig": own_fields(VRPOConfig, TrainingArguments),
        "TrainingArguments": INHERITED,
        "RecipeArguments": own_fields(RecipeArguments),
        "iterate.py": own_fields(ITERATE.Arguments),
        "SamplerSettings": own_fields(SamplerSettings),
        "ScoreSettings": own_fields(ScoreSettings),
        "HarnessSettings": own_fields(HarnessSettings),
        "Settings": own_fields(Settings),
        "TableArguments": own_fields(TableArguments),
        "PreferenceLoss": own_fields(PreferenceLoss),
        "ComposedDesign": own_fields(ComposedDesign),
        "Mirror": own_fields(Mirror),
        "LLaDAConfig": own_fields(LLaDAConfig, PreTrainedConfig),
        "LLaDAMoEConfig": own_fields(LLaDAMoEConfig, PreTrainedConfig),
        "DenoiserSpec": own_fields(DenoiserSpec),
    }
    for config, (table, _) in CONFIGS.items():
        assert set(table) == set(owners[config]), config
    numbers = {name for name, kind in get_type_hints(TrainingArguments).items() if kind in (int, float)}
    refused = {"label_smoothing_factor"}  # at any value but 0 (llada.training.trl_options)
    assert numbers - set(INHERITED) == refused | {"local_rank"}  # which a launcher sets


def test_how_many_bad_inputs_are_tried():
    tried = sum(len(bad) for table, _ in CONFIGS.values() for _, bad in table.values())
    tried += sum(len(bad) for *_, bad in FUNCTIONS) + len(COMBINATIONS)
    assert len(FIELDS) >= 260
    assert tried >= 2400


COMBINATIONS = [
    (VRPOConfig, dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0]), "one weight for each"),
    (VRPOConfig, dict(loss_type=["exo_pair"]), "label_smoothing=0 makes exo_pair infinite"),
    (VRPOConfig, dict(loss_type=["aot"], use_weighting=True), "use_weighting=True does not go with"),
    (VRPOConfig, dict(loss_type=["nca_pair"], f_divergence_type="forward_kl"), "f_divergence_type='forward_kl' does"),
    (VRPOConfig, dict(loss_type=["sft"], ld_alpha=0.5), "ld_alpha=0.5 changes nothing"),
    (VRPOConfig, dict(kept_draws=2, unit_gradients=True), "exclude each other"),
    (VRPOConfig, dict(sync_ref_model=True, precompute_ref_log_probs=True), "sync_ref_model changes the reference"),
    (VRPOConfig, dict(ref_log_probs_dir="a"), "ref_log_probs_dir='a' is for precompute_ref_log_probs=True"),
    (VRPOConfig, dict(precompute_ref_log_probs=True, bf16_full_eval=True), "stored in its own precision"),
    (VRPOConfig, dict(estimator="mirror", n_y=2), "estimator='mirror' has no option 'n_y'"),
    (VRPOConfig, dict(estimator="naive_dpo", n_t=0), "n_t=0 must be at least 1"),
    (VRPOConfig, dict(estimator_options={"masks": "bernoulli", "count_tilt": 0.1}), "need masks='exact_count'"),
    (VRPOConfig, dict(estimator_options={"baseline_slope": 1.0}), "baseline_slope=1.0 needs a baseline"),
    (VRPOConfig, dict(save_strategy="steps", save_steps=0), "save_steps=0 saves nothing"),
    (VRPOConfig, dict(load_best_model_at_end=True), "load_best_model_at_end requires"),
    (MaskedDiffusionConfig, dict(eval_strategy="steps", logging_strategy="no", logging_steps=0), "eval"),
    (MaskedDiffusionConfig, dict(fp16=True, bf16=True), "fp16 and bf16"),
]


@pytest.mark.parametrize(("config", "options", "message"), COMBINATIONS)
def test_options_that_do_not_go_together_are_refused(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**(TRAINING | options))


MASK = torch.ones(2, 4, dtype=torch.bool)
GENERATORS = [torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)]
DRAWS = draw_masks(MASK, GENERATORS, 2)
BAD_COUNTS = [0, -1, 1.5, 2.0, True, "2", math.nan, None]
BAD_NUMBERS = [-0.1, math.nan, math.inf, "1", True, None]
FUNCTIONS = [
    ("n_t", lambda value: draw_masks(MASK, GENERATORS, value), BAD_COUNTS),
    ("n_y", lambda value: draw_masks(MASK, GENERATORS, 1, n_y=value), BAD_COUNTS),
    ("masks", lambda value: draw_masks(MASK, GENERATORS, 1, value), ["gauss", "", 1, None]),
    ("levels", lambda value: draw_masks(MASK, GENERATORS, 1, levels=value), ["even", "", 1, None]),
    ("count_tilt", lambda value: draw_masks(MASK, GENERATORS, 1, count_tilt=value), BAD_NUMBERS),
    ("seed", lambda value: generator_for(value, 0, 1), [1.5, 2.0, math.nan, "1", True, None]),
    ("key", lambda value: generator_for(0, value, 1), [1.5, 2.0, math.nan, "1", True, None]),
    ("key", lambda value: response_generators(0, value, [1], 0), [1.5, math.nan, "1", None]),
    ("key", lambda value: response_generators(0, 0, [value], 0), [1.5, math.nan, "1", None]),
    ("eps", lambda value: exact_elbo(None, MASK[0], MASK[0], eps=value), [*BAD_NUMBERS, 1.0]),
    ("batch_size", lambda value: exact_elbo(None, MASK[0], MASK[0], batch_size=value), BAD_COUNTS),
    ("n", lambda value: log_likelihood(None, MASK[0], MASK[0], GENERATORS[0], n=value), BAD_COUNTS),
    ("group", lambda value: log_likelihood(None, MASK[0], MASK[0], GENERATORS[0], group=value), BAD_COUNTS),
    ("group", lambda value: leave_one_out(DRAWS, MASK, value, 0.1), BAD_COUNTS),
    ("prior", lambda value: leave_one_out(DRAWS, MASK, 1, value), [*BAD_NUMBERS, 0, 0.0]),
    ("slope", lambda value: leave_one_out(DRAWS, MASK, 1, 0.1, value), BAD_NUMBERS),
    ("divergence", lambda value: divergence_score(torch.ones(2), value), ["kl", "", 1, None]),
    ("alpha", lambda value: divergence_score(torch.ones(2), "alpha_divergence", value), BAD_NUMBERS[1:]),
    ("ld_alpha", lambda value: length_weights(MASK, value), [*BAD_NUMBERS, 1.1]),
    ("estimator", lambda value: design(value), ["best", "", 1, None, True]),
    ("n_t", lambda value: design("mirror", n_t=value), BAD_COUNTS[:-1]),
    ("eos_tail", lambda value: Collator(0, 1, value), [-1, "-1", 1.5, "all", "", math.nan, True, None]),
]


@pytest.mark.parametrize(("name", "call", "bad"), FUNCTIONS)
def test_functions_refuse_numbers_that_mean_nothing(name, call, bad):
    for value in bad:
        with pytest.raises(ValueError, match=rf"^{name}\b.*must be"):
            call(value)


def test_what_a_message_says():
    for value, declared, message in [
        (0, Range(at_least=1), "x=0 must be at least 1"),
        (2, Range(above=0, at_most=1), "x=2 must be above 0 and at most 1"),
        (3, Range(at_least=0, at_most=1), "x=3 must be between 0 and 1"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            check("x", value, Annotated[int, declared])
    with pytest.raises(ValueError, match=r"^x\[1\]=nan must be finite$"):
        check("x", [1, math.nan], list[float])
    with pytest.raises(ValueError, match="^x='a' must be an integer or None$"):
        check("x", "a", int | None)
    with pytest.raises(ValueError, match="^x='{' is no JSON: "):
        as_mapping("x", "{")
    with pytest.raises(ValueError, match="^config field mask_token_id=40 must be at least 0 and below 40$"):
        LLaDAConfig(**DENSE, mask_token_id=40)
    config = LLaDAConfig(**DENSE)
    with pytest.raises(ValueError, match="^config field eot_token_id=50 must be"):
        config.set_special_ids(mask=1, eos=2, pad=3, eot=50)


def test_a_yaml_file_gives_numbers_as_before(tmp_path):
    """YAML 1.1 reads 1e-4 as text, 2 as an integer and a single loss as text."""
    yaml = "output_dir: out\nlearning_rate: 1e-4\nbeta: 1\neos_tail: 2\nmax_steps: '3'\nloss_type: sigmoid\nn_t: 4\n"
    yaml += "warmup_steps: 0.1\nlogging_steps: 5\nestimator_options:\n  levels: mirrored\nloss_weights: [1]\n"
    (tmp_path / "a.yaml").write_text(yaml + "eval_fraction: 0\nreport_to: none\nuse_cpu: true\n")
    types = [RecipeArguments, ModelConfig, VRPOConfig]
    _, _, args = parse(types, ["--config", str(tmp_path / "a.yaml"), "--weight_decay", "1e-2"])
    assert (args.learning_rate, args.beta, args.eos_tail, args.max_steps) == (1e-4, 1, "2", 3)
    assert (args.loss_type, args.loss_weights, args.warmup_steps, args.weight_decay) == (["sigmoid"], [1], 0.1, 0.01)
    assert args.design() == ComposedDesign(n_t=4, levels="mirrored")
    (tmp_path / "b.yaml").write_text("output_dir: out\nlearning_rate: nan\nuse_cpu: true\n")
    with pytest.raises(RecipeError, match=r"b.yaml: learning_rate=nan must be at least 0 and finite$"):
        parse(types, ["--config", str(tmp_path / "b.yaml")])
    with pytest.raises(RecipeError, match="^the command line: eval_fraction=1.5 must be at least 0 and below 1$"):
        parse(types, ["--output_dir", "out", "--eval_fraction", "1.5"])


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '{"temperature": NaN}', '{"steps": "8"}', '{"steps": null}'])
def test_saved_settings_that_cannot_be_used_name_their_file(tmp_path, content):
    (tmp_path / "sampler.json").write_text(content)
    with pytest.raises(ValueError, match=r"^.*sampler\.json"):
        SamplerSettings.load(tmp_path)


def test_the_published_config_passes(shared):
    for file in Path(shared, "checkpoints").glob("*/config.json"):
        found = json.loads(file.read_text())
        config = LLaDAConfig.from_dict(found)
        assert (config.mask_token_id, config.denoiser_spec.mask_id) == (found["mask_token_id"], found["mask_token_id"])
