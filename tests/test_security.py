"""The claims of docs/security.md: nothing that a model, a checkpoint or a data file brings along is run."""

import ast
import inspect
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers.trainer
import yaml
from conftest import tiny_model, tiny_moe
from jinja2.exceptions import SecurityError
from peft import LoraConfig, PeftModel
from test_sft import IDS, TOKENIZER
from test_sft import PAIRS as ROWS
from test_vrpo_trainer import PAIRS
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llada import MaskedDiffusionConfig, MaskedDiffusionTrainer
from llada.cli.checkpoint import load_config, load_model
from llada.cli.info import rows
from llada.cli.merge import merge
from llada.cli.recipe import RecipeArguments, parse
from llada.data.loading import load_rows
from llada.data.tokenizer import byte_tokenizer, load_tokenizer, render, set_template
from llada.files import write_manifest
from llada.models.common.lora import wrap_with_adapters
from llada.recipes import generate
from vrpo import VRPOConfig, VRPOTrainer, variance
from vrpo.analysis.rows import check
from vrpo.recipes import make_pairs

FAMILIES = {"dense": tiny_model, "moe": tiny_moe}
CODE = ("configuration_evil", "modeling_evil", "tokenization_evil")
CLASSES = {"AutoConfig": 0, "AutoModel": 1, "AutoModelForCausalLM": 1, "AutoTokenizer": 2}


class Trap:
    """A file that only run code writes."""

    def __init__(self, folder: Path):
        self.file = folder / "executed"
        self.source = f"open({str(self.file)!r}, 'a').write('x')\n"

    def __reduce__(self):
        return exec, (self.source,)

    def assert_untouched(self) -> None:
        assert not self.file.exists()


@pytest.fixture
def trap(tmp_path):
    return Trap(tmp_path)


def lay(trap: Trap, folder: Path) -> None:
    """Put modules that spring the trap into a directory, and name them in its configs."""
    for name in CODE:
        (folder / f"{name}.py").write_text(trap.source + "class Evil:\n    pass\n")
    names = {auto: f"{CODE[place]}.Evil" for auto, place in CLASSES.items()}
    for name in ("config.json", "adapter_config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            fields = json.loads((folder / name).read_text())
            if name == "adapter_config.json":  # PEFT's name of code that belongs to adapters
                fields["auto_mapping"] = {"base_model_class": "Evil", "parent_library": CODE[1]}
            else:
                fields["auto_map"] = names | {"AutoTokenizer": [None, names["AutoTokenizer"]]}
            (folder / name).write_text(json.dumps(fields))


def malicious(trap: Trap, folder: Path, family: str = "dense", seed: int = 0) -> str:
    FAMILIES[family](seed=seed, dtype=torch.float32, **IDS).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    lay(trap, folder)
    return str(folder)


def settings(folder: Path) -> dict:
    return dict(output_dir=str(folder / "out"), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)


def train(folder: Path, model: str, kind: str = "sft", ref_model=None, **options):
    """From the model's own tokenizer, for one step."""
    if kind == "sft":
        run = MaskedDiffusionTrainer(
            model, MaskedDiffusionConfig(**settings(folder)), train_dataset=ROWS[:2], **options
        )
    else:
        args = VRPOConfig(**settings(folder), n_t=1)
        run = VRPOTrainer(model, ref_model, args=args, train_dataset=PAIRS[:2], **options)
    run.train()
    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_code_beside_a_model_never_runs(trap, family, tmp_path, capsys):
    """Through the Auto classes (even if they are told to trust it), trainers, PEFT and every command."""
    model = malicious(trap, tmp_path / "model", family)
    prompts, pairs = tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl"
    prompts.write_text('{"prompt": "a", "answer": "b"}\n')
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS[:4]))
    for trust in (None, False, True):
        AutoConfig.from_pretrained(model, trust_remote_code=trust)
        for auto in (AutoModel, AutoModelForCausalLM):
            auto.from_pretrained(model, trust_remote_code=trust)
    load_model(model, load_config(model)[1])
    rows(model, 4)
    check(str(pairs), model)
    sampler = ["--prompts", str(prompts), "--steps", "2", "--gen_length", "2", "--block_length", "2"]
    generate.main(["--model", model, *sampler, "--output", str(tmp_path / "c.jsonl")])
    table = ["--data", str(pairs), "--output", str(tmp_path / "t"), "--repeats", "2", "--budgets", "2"]
    other = malicious(trap, tmp_path / "other", family, seed=1)
    variance.main(["--model", model, "--ref_model", other, *table, "--gradient", "none"])
    for kind in ("sft", "vrpo"):
        train(tmp_path, model, kind)
    train(tmp_path, model, "vrpo", ref_model=model)
    wrapped = wrap_with_adapters(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2))
    wrapped.save_pretrained(tmp_path / "adapters")
    lay(trap, tmp_path / "adapters")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "adapters")
    train(tmp_path, str(tmp_path / "adapters"))
    load_model(str(tmp_path / "adapters"), load_config(str(tmp_path / "adapters"))[1])
    merge(str(tmp_path / "adapters"), str(tmp_path / "merged"))
    trap.assert_untouched()
    capsys.readouterr()


def test_a_model_or_tokenizer_that_is_only_code_is_refused_without_asking(trap, tmp_path, monkeypatch):
    """transformers would ask on the terminal whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    model = malicious(trap, tmp_path / "model")
    fields = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": fields["auto_map"]}))
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(fields | {"tokenizer_class": "EvilTokenizer"}))
    refused = "without code that it brings along"
    for call in (
        lambda: load_config(model),
        lambda: load_tokenizer(model),
        lambda: train(tmp_path, model),
        lambda: train(tmp_path, model, "vrpo"),
    ):
        with pytest.raises(ValueError, match=refused):
            call()
    trap.assert_untouched()


def test_trust_is_not_an_option(trap, tmp_path):
    model = malicious(trap, tmp_path / "model")
    with pytest.raises(ValueError, match="trust_remote_code=True is refused"):
        MaskedDiffusionTrainer(
            model,
            MaskedDiffusionConfig(**settings(tmp_path), model_init_kwargs={"trust_remote_code": True}),
            train_dataset=ROWS[:2],
        )
    for config in (MaskedDiffusionConfig, VRPOConfig):
        with pytest.raises(ValueError, match="trust_remote_code"):
            config(**settings(tmp_path), trust_remote_code=True)
        with pytest.raises(ValueError, match="trust_remote_code"):
            parse((RecipeArguments, config), ["--output_dir", str(tmp_path), "--trust_remote_code", "true"])


PICKLED = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


@pytest.mark.parametrize("name", PICKLED)
def test_a_pickle_in_a_checkpoint_that_is_resumed_runs_nothing(trap, name, tmp_path):
    """transformers reads these with torch.load(weights_only=True), which builds tensors and plain values only."""
    model = malicious(trap, tmp_path / "model")
    run = train(tmp_path, model)
    checkpoint = Path(run.args.output_dir, "checkpoint-1")
    assert (checkpoint / name).exists()
    (checkpoint / name).write_bytes(pickle.dumps(trap, protocol=2))  # that of torch.save
    write_manifest(checkpoint)  # as whoever changed the file would
    again = MaskedDiffusionTrainer(
        model, MaskedDiffusionConfig(**settings(tmp_path) | {"max_steps": 2}), train_dataset=ROWS[:2]
    )
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        again.train(resume_from_checkpoint=str(checkpoint))
    trap.assert_untouched()


def test_the_trap_springs_where_a_pickle_is_loaded(trap):
    pickle.loads(pickle.dumps(trap))
    assert trap.file.exists()


def test_training_arguments_are_written_and_never_read(trap, tmp_path):
    model = malicious(trap, tmp_path / "model")
    run = train(tmp_path, model)
    checkpoint = Path(run.args.output_dir, "checkpoint-1")
    (checkpoint / "training_args.bin").write_bytes(pickle.dumps(trap))
    write_manifest(checkpoint)
    args = MaskedDiffusionConfig(**settings(tmp_path) | {"max_steps": 2})
    MaskedDiffusionTrainer(model, args, train_dataset=ROWS[:2]).train(resume_from_checkpoint=str(checkpoint))
    trap.assert_untouched()


def test_the_trainer_loads_only_tensors_and_plain_values():
    """Every torch.load of the installed transformers.Trainer has weights_only=True."""
    calls = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(transformers.trainer)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert len(calls) > 3
    for call in calls:
        assert {"weights_only": "True"}.items() <= {word.arg: ast.unparse(word.value) for word in call.keywords}.items()


@pytest.mark.parametrize(
    "tag", ["object/apply:os.system", "name:os.system", "module:os", "object/new:subprocess.Popen"]
)
def test_yaml_builds_no_objects(tag, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"output_dir: !!python/{tag} ['exit 1']\n")
    with pytest.raises((yaml.YAMLError, ValueError), match="python/"):
        parse((RecipeArguments,), ["--config", str(file)])


ESCAPES = {
    "classes": "{{ ''.__class__.__mro__ }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "builtins": "{{ strftime_now.__globals__['__builtins__'] }}",
    "the environment": "{{ self.__init__.__globals__ }}",
    "a message's class": "{{ messages.__class__.__base__.__subclasses__() }}",
    "a format string": "{{ '{0.__class__}'.format(messages) }}",
    "a change of the messages": "{{ messages.append(1) }}",
}


def leaks(text: str) -> bool:
    return any(word in text for word in ("class", "object", "builtin", "module", "<"))


@pytest.mark.parametrize("way", ["in the tokenizer's directory", "chat_template_path"])
@pytest.mark.parametrize("case", ESCAPES)
def test_chat_templates_stay_in_their_sandbox(case, way, tmp_path):
    """Jinja2's immutable sandbox, of transformers: what is not to be seen is an error, or written as nothing."""
    turn = "{% if add_generation_prompt %}assistant{% endif %}"
    tokenizer, template, messages = byte_tokenizer(), ESCAPES[case] + turn, [{"role": "user", "content": "a"}]
    file = tmp_path / ("template.jinja" if way == "chat_template_path" else "chat_template.jinja")
    file.write_text(template)
    refused = ""
    try:
        if way == "chat_template_path":
            set_template(tokenizer, str(file))
        else:
            TOKENIZER.save_pretrained(tmp_path)
            file.write_text(template)
            tokenizer = load_tokenizer(str(tmp_path))
        text = render(tokenizer, messages, open_turn=True)
    except (SecurityError, ValueError) as error:  # `load_tokenizer` names the tokenizer
        text, refused = "", str(error)
    assert not leaks(text)
    assert not refused or "unsafe" in refused
    assert messages == [{"role": "user", "content": "a"}]


def test_data_is_read_and_never_run(trap, tmp_path):
    """A loading script, alone or beside the data; `datasets` has run none since its release 4."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.py").write_text(trap.source)
    shutil.copy(tmp_path / "data" / "data.py", tmp_path / "script.py")
    for source in ("data", "script.py", "data/data.py"):
        with pytest.raises((ValueError, OSError, RuntimeError)):
            load_rows(str(tmp_path / source))
    trap.assert_untouched()


@pytest.mark.parametrize(
    "name", ["os.system", "os:system", "subprocess:run", "builtins:eval", "eval", "", ":", "FILE.py"]
)
def test_a_verifier_is_a_known_name_or_a_function_of_a_named_file(name):
    with pytest.raises(ValueError, match="must be one of"):
        make_pairs.load_verifier(name)
