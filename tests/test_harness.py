"""The model of lm-evaluation-harness: its options, likelihoods and answers through the harness itself."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, tiny_model

from llada.data.tokenizer import byte_tokenizer, special_ids
from llada.denoiser import as_denoiser
from llada.diffusion.causal import causal_log_likelihood
from llada.diffusion.likelihood import exact_elbo
from llada.errors import RecipeError
from llada.sampling.left_to_right import causal_generate
from llada.sampling.loop import generate
from llada.sampling.text import before_end

lm_eval = pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
from lm_eval.api.instance import Instance  # noqa: E402

from llada.diffusion.scoring import Answer  # noqa: E402
from llada.harness.greedy import is_greedy  # noqa: E402
from llada.harness.model import HarnessModel  # noqa: E402

TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model of bytes with random weights, in float64."""
    path = tmp_path_factory.mktemp("model")
    ids = special_ids(TOKENIZER)
    model = tiny_model(
        vocab_size=len(TOKENIZER), max_sequence_length=96, mask_token_id=ids.mask, eos_token_id=ids.eos,
        pad_token_id=ids.pad, eot_token_id=None,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # of random weights, logits hardly depend on what is masked
    model.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return str(path)


def model_of(folder, **options) -> HarnessModel:
    return HarnessModel(pretrained=folder, device="cpu", **{"draws": 16, "group": 4} | options)


def requests(kind: str, *arguments: tuple, task: str = "t") -> list[Instance]:
    """One request for each tuple, each of a document of its own."""
    return [Instance(kind, {}, each, 0, (task, number, 1)) for number, each in enumerate(arguments)]


def test_the_likelihood_of_a_short_answer_is_the_exact_elbo(folder):
    """ " ab" has 3 bytes and 7 masks; the context's trailing space goes to the answer, as in the harness."""
    lm = model_of(folder)
    (value, greedy), (moved, _) = lm.loglikelihood(requests("loglikelihood", ("Q: x", " ab"), ("Q: x ", "ab")))
    tokens = torch.tensor(TOKENIZER("Q: x ab", add_special_tokens=False).input_ids)
    exact = exact_elbo(as_denoiser(lm.model), tokens, torch.arange(7) >= 4).item()
    assert value == moved == pytest.approx(exact, abs=1e-10)
    assert not greedy
    assert lm.get_model_info()["mean_standard_error"] == 0.0


def test_answers_that_the_model_would_write_are_greedy(folder):
    """The sampler's own answers, with one token a step, and the same with another last token."""
    lm = model_of(folder)
    contexts = [tuple(TOKENIZER(text).input_ids) for text in ("abc", "a longer one", "x")]
    answers = []
    for context in contexts:
        length = 5
        canvas = generate(
            lm.model, torch.tensor([context]), gen_length=length, steps=length, block_length=length, stop_at_eos=False
        )
        answers.append(Answer(context, tuple(canvas[0, len(context) :].tolist()), 0))
    other = [Answer(each.context, (*each.tokens[:-1], (each.tokens[-1] + 1) % 200), 0) for each in answers]
    assert is_greedy(as_denoiser(lm.model), [*answers, *other], batch_size=4) == [True] * 3 + [False] * 3


def test_a_rolling_likelihood_scores_every_token_once(folder):
    """Windows of at most 4 bytes: "abc" by itself, and "de" after "bc"."""
    lm = model_of(folder, max_length=4)
    (value,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("abcde",)))
    ids = torch.tensor(TOKENIZER("abcde").input_ids)
    first = exact_elbo(as_denoiser(lm.model), ids[:3], torch.ones(3, dtype=torch.bool))
    second = exact_elbo(as_denoiser(lm.model), ids[1:], torch.arange(4) >= 2)
    assert value == pytest.approx((first + second).item(), abs=1e-10)


def test_rolling_likelihoods_do_not_depend_on_the_texts_before_and_are_kept_one_by_one(folder, monkeypatch):
    """Coupled too, where streams are those of questions: after a kill, the texts that are left are the first ones."""
    lm = model_of(folder, coupled=True)
    asked = requests("loglikelihood_rolling", ("a text of many bytes",), ("another text of bytes",))
    whole = lm.loglikelihood_rolling(asked)
    assert lm.loglikelihood_rolling(asked[1:]) == [pytest.approx(whole[1], abs=1e-9)]
    kept, scored = [], lm.scored

    def killed(*given, **others):
        yield next(scored(*given, **others))
        raise KeyboardInterrupt

    monkeypatch.setattr(lm, "scored", killed)
    monkeypatch.setattr(lm.cache_hook, "add_partial", lambda kind, args, value: kept.append((kind, args, value)))
    with pytest.raises(KeyboardInterrupt):
        lm.loglikelihood_rolling(asked)
    assert kept == [("loglikelihood_rolling", ("a text of many bytes",), pytest.approx(whole[0], abs=1e-9))]


def test_answers_end_before_the_first_stop_text(folder):
    """Each is a prefix of what the sampler writes, whatever the batch, and has no stop text."""
    prompts = [f"{'ab' * n}?" for n in range(1, 6)]
    whole = {}
    for size in (1, 4):
        lm = model_of(folder, batch_size=size, gen_length=12, steps=12, block_length=4)
        asked = requests("generate_until", *((each, {"until": [], "do_sample": False}) for each in prompts))
        whole[size] = lm.generate_until(asked)
        stops = [text[2:4] for text in whole[size]]
        asked = requests("generate_until", *((p, {"until": [s]}) for p, s in zip(prompts, stops, strict=True)))
        for text, stop, found in zip(whole[size], stops, lm.generate_until(asked), strict=True):
            assert found == text[: text.find(stop)] if stop else found == text
    assert whole[1] == whole[4]
    assert any(whole[1])


def test_a_task_s_length_counts_unless_the_model_has_one(folder):
    lm = model_of(folder)
    asked = requests("generate_until", ("abc", {"until": [], "max_gen_toks": 8}))
    lm.generate_until(asked)
    assert lm.stats.tokens == 8
    lm = model_of(folder, gen_length=6, steps=6, block_length=6)
    lm.generate_until(asked)
    assert lm.stats.tokens == 6


def test_random_answers_do_not_depend_on_what_runs_beside_them(folder):
    lm = model_of(folder, gen_length=8, steps=8, block_length=8)
    kwargs = {"until": [], "do_sample": True, "temperature": 50.0}  # the model is sure of itself
    together = lm.generate_until(requests("generate_until", *((p, kwargs) for p in ("abc", "de", "fghi"))))
    assert together == [lm.generate_until(requests("generate_until", (p, kwargs)))[0] for p in ("abc", "de", "fghi")]


def test_a_request_that_is_repeated_has_different_random_answers(folder):
    """As by a task's `repeats`: the first is that of a single request, and each time all are the same."""
    lm = model_of(folder, gen_length=8, steps=8, block_length=8, remasking="top_probability")
    once = requests("generate_until", ("abc", {"until": [], "do_sample": True, "temperature": 50.0}))
    found = lm.generate_until(once * 4)
    assert len(set(found)) == 4
    assert found == lm.generate_until(once * 4)
    assert found[:1] == lm.generate_until(once)


def test_random_remasking_does_not_depend_on_the_batch(folder):
    asked = requests("generate_until", *((text, {"until": []}) for text in ("abc", "de", "fghi")))
    options = {"gen_length": 8, "steps": 8, "block_length": 8, "remasking": "random"}
    alone, together = (model_of(folder, batch_size=size, **options).generate_until(asked) for size in (1, 3))
    assert alone == together


def test_a_stop_text_that_is_a_special_token_ends_an_answer(causal_folder, monkeypatch):
    """The answer is "one<|eot_id|>two", whose text has no special tokens."""
    ids = TOKENIZER("one<|eot_id|>two").input_ids
    monkeypatch.setattr(
        "llada.harness.generation.causal_generate",
        lambda model, prompt_BP, mask_BP, **others: torch.cat([prompt_BP, torch.tensor([ids] * len(prompt_BP))], 1),
    )
    lm = model_of(causal_folder, gen_length=6, batch_size=2)
    monkeypatch.setitem(lm.tokenizer.init_kwargs, "trained_on_turns", False)
    asked = requests("generate_until", ("a", {"until": ["<|eot_id|>"]}), ("b", {"until": []}))
    assert lm.generate_until(asked) == ["one", "onetwo"]


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory):
    path, ids = tmp_path_factory.mktemp("causal"), special_ids(TOKENIZER)
    model = tiny_model(
        vocab_size=len(TOKENIZER), max_sequence_length=96, mask_token_id=ids.mask, eos_token_id=ids.eos,
        pad_token_id=ids.pad, eot_token_id=None, causal=True,
    )  # fmt: skip
    model.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return str(path)


def test_an_autoregressive_model_answers_all_kinds_of_requests(causal_folder):
    """Likelihoods by the chain rule, from BOS on where there is no context; its own greedy answers are greedy."""
    lm = model_of(causal_folder, gen_length=6)
    model, bos = lm.model, TOKENIZER.bos_token_id

    def chain(context: list[int], tokens: list[int]) -> float:
        ids = torch.tensor([context + tokens])
        return causal_log_likelihood(model, ids, torch.arange(ids.shape[1])[None] >= len(context)).item()

    (after, _), (alone, _) = lm.loglikelihood(requests("loglikelihood", ("Q: x", " ab"), ("", "ab")))
    assert after == pytest.approx(chain(TOKENIZER("Q: x").input_ids, TOKENIZER(" ab").input_ids), abs=1e-10)
    assert alone == pytest.approx(chain([bos], TOKENIZER("ab").input_ids), abs=1e-10)
    (text,) = model_of(causal_folder, max_length=4).loglikelihood_rolling(requests("loglikelihood_rolling", ("abcde",)))
    ids = TOKENIZER("abcde").input_ids
    assert text == pytest.approx(chain([bos], ids[:3]) + chain(ids[1:3], ids[3:]), abs=1e-10)
    contexts = [tuple(TOKENIZER(text).input_ids) for text in ("abc", "a longer one")]
    written = [causal_generate(model, torch.tensor([each]), gen_length=5)[0, len(each) :].tolist() for each in contexts]
    answers = [Answer(context, tuple(tokens), 0) for context, tokens in zip(contexts, written, strict=True)]
    other = [Answer(each.context, (*each.tokens[:-1], (each.tokens[-1] + 1) % 200), 0) for each in answers]
    assert is_greedy(as_denoiser(model), [*answers, *other], batch_size=3) == [True] * 2 + [False] * 2
    found = lm.generate_until(requests("generate_until", *((each, {"until": []}) for each in ("abc", "a longer one"))))
    ids = [causal_generate(model, torch.tensor([each]), gen_length=6)[0, len(each) :].tolist() for each in contexts]
    assert found == [TOKENIZER.decode(before_end(each, {TOKENIZER.eos_token_id})) for each in ids]
    with pytest.raises(RecipeError, match="cfg_scale=1.0: guidance is of masked diffusion models"):
        model_of(causal_folder, cfg_scale=1.0)


def test_a_context_of_spaces_leaves_an_autoregressive_model_its_first_token(causal_folder):
    """The harness moves the spaces to the answer, which is then without a context: it begins after BOS."""
    lm = model_of(causal_folder)
    (spaces, _), (empty, _) = lm.loglikelihood(requests("loglikelihood", ("  ", "ab"), ("", "  ab")))
    assert spaces == empty


def test_a_context_is_not_cut_to_nothing(folder):
    lm = model_of(folder, max_length=8, truncate=True, gen_length=8, steps=8, block_length=8)
    for kind, arguments in (("loglikelihood", ("abcdef", " 1234567")), ("generate_until", ("abcdef", {"until": []}))):
        with pytest.raises(
            RecipeError, match="document 0 of task t cannot be cut: nothing of its context would be left"
        ):
            getattr(lm, kind)(requests(kind, arguments))


OVERLONG = ("loglikelihood", ("a" * 95, " bcd"))


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (*OVERLONG, "2 of 2 requests have more than the 96 tokens that fit .* document 0 of task t, has 95 tokens"),
        ("generate_until", ("a" * 90, {"until": []}), "more than the 84 tokens that fit"),
        ("loglikelihood", ("a<|mdm_mask|>", " b"), "document 0 of task t has text that spells the mask token"),
        ("loglikelihood", ("a", ""), "document 0 of task t asks for the likelihood of nothing"),
        ("generate_until", ("", {"until": []}), "document 0 of task t has an empty prompt"),
        ("generate_until", ("a", {"do_sample": True, "top_p": 0.9}), r"asks for \['top_p'\] in generation_kwargs"),
        ("generate_until", ("a", {"beams": 3}), r"asks for \['beams'\]"),
    ],
)
def test_requests_that_cannot_be_answered_are_named(folder, method, arguments, message):
    lm = model_of(folder, gen_length=12, steps=12, block_length=4)
    with pytest.raises(ValueError, match=message):
        getattr(lm, method)(requests(method, arguments, arguments))


def test_contexts_are_cut_at_their_beginning_if_asked_for(folder, capsys):
    cut, short = (model_of(folder, truncate=truncate) for truncate in (True, False))
    (found,) = cut.loglikelihood(requests("loglikelihood", ("b" + "a" * 95, " bcd")))
    (expected,) = short.loglikelihood(requests("loglikelihood", ("a" * 92, " bcd")))
    assert found == pytest.approx(expected)
    assert "1 of 1 requests have more than the 96 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drawn": 3}, r"unknown options \['drawn'\]; there are \['pretrained'"),
        ({"draws": 10}, "draws=10 must be a multiple of group=4"),
        ({"batch_size": "auto"}, "batch_size='auto' must be a number of rows"),
        ({"gen_length": 96}, "gen_length=96 leaves no room"),
        ({"preset": "llada-3/gsm8k"}, "preset='llada-3/gsm8k' must be MODEL/BENCHMARK"),
        ({"pretrained": ""}, "pretrained is missing"),
        ({"pretrained": "/nowhere/model"}, "/nowhere/model does not exist"),
    ],
)
def test_options_that_do_not_fit_are_named(folder, options, message):
    with pytest.raises(ValueError, match=message):
        model_of(**{"folder": folder} | options) if "pretrained" not in options else HarnessModel(**options)


# Through the harness, with tasks of local files.

TASKS = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{c}}", "doc_to_target": "{{t}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "answer": {
        "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{c[0]}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 8}, "metric_list": [{"metric": "exact_match"}],
    },
    "text": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Seven documents: a question, three answers of one to nine bytes, and which of them is right."""
    path = tmp_path_factory.mktemp("tasks")
    rows = [
        {"q": f"Question {n}{'?' * n}", "c": ["a" * (1 + n % 3), "no", f"it is {n}!!"], "t": n % 3} for n in range(7)
    ]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, fields in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path / "rows.jsonl")}}}
        (path / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test"} | data | fields))
    return path


def evaluated(lm, tasks, **options) -> dict:
    """The samples of all tasks by document: what the model said of each request."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    results = lm_eval.simple_evaluate(
        lm, tasks=list(TASKS), task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0, **options,
    )  # fmt: skip
    if results is None:  # not the first process
        return {}
    return {name: [each["resps"] for each in rows] for name, rows in results["samples"].items()}


def close(one, two) -> bool:
    """Whether two nested answers are equal, numbers to 1e-9."""
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(close, one, two))
    return one == pytest.approx(two, abs=1e-9) if isinstance(one, float) else str(one) == str(two)


@pytest.fixture(scope="module")
def plain(folder, tasks):
    return evaluated(model_of(folder, batch_size=1), tasks)


@pytest.mark.filterwarnings("ignore")
def test_the_harness_gets_the_same_from_larger_batches(folder, tasks, plain):
    """The model is named as on the command line."""
    found = evaluated("llada", tasks, model_args=f"pretrained={folder},draws=16,group=4,device=cpu", batch_size=8)
    assert all(close(found[name], plain[name]) for name in TASKS)


@pytest.mark.filterwarnings("ignore")
def test_a_killed_evaluation_goes_on_from_the_harness_s_cache(folder, tasks, plain, tmp_path, monkeypatch):
    """Killed while the second kind of requests runs: nothing of the first is computed again, and all is the same."""
    lm = model_of(folder)
    monkeypatch.setattr(lm, "generate_until", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluated(lm, tasks, use_cache=str(tmp_path / "cache"))
    again = model_of(folder, batch_size=2)
    monkeypatch.setattr(again, "loglikelihood", lambda *args, **kwargs: 1 / 0)
    found = evaluated(again, tasks, use_cache=str(tmp_path / "cache"))
    assert all(close(found[name], plain[name]) for name in TASKS)
    with pytest.raises(RecipeError, match=r"holds the answers of another model, or of other options"):
        evaluated(model_of(folder, draws=32), tasks, use_cache=str(tmp_path / "cache"))
    in_memory = HarnessModel(lm.model, TOKENIZER, draws=16, group=4)
    with pytest.raises(RecipeError, match="use_cache: a model in memory cannot be told from another one"):
        evaluated(in_memory, tasks, use_cache=str(tmp_path / "cache"))


def test_a_length_that_a_task_may_not_change_is_an_option_that_matters(folder):
    """48 tokens are the default here, but only the option keeps them where the task's `max_gen_toks` is another."""
    default, given = model_of(folder), model_of(folder, gen_length=48)
    assert default.sampler == given.sampler
    assert default.identity != given.identity


@pytest.mark.slow
def test_the_command_line_on_two_processes_gives_the_same(folder, tasks, plain, tmp_path):
    """The samples that the harness writes, from `accelerate launch -m llada.harness` and from one process here."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/ddp_cpu.yaml"]
    command += ["-m", "llada.harness", "run", "--model", "llada", "--tasks", ",".join(TASKS), "--device", "cpu"]
    command += ["--model_args", f"pretrained={folder},draws=16,group=4", "--batch_size", "4", "--log_samples"]
    command += ["--include_path", str(tasks), "--output_path", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in TASKS:
        (file,) = tmp_path.rglob(f"samples_{name}_*.jsonl")
        rows = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda row: row["doc_id"])
        # The harness repeats requests where one process has fewer, and keeps all answers: the first is the one it uses.
        found, expected = (
            [[as_numbers(each[0]) for each in row] for row in side]
            for side in ([row["resps"] for row in rows], plain[name])
        )
        assert close(found, expected)


def as_numbers(value):
    """Likelihoods, which the harness writes as text, as floats."""
    values = value if isinstance(value, list | tuple) else [value]
    return [float(each) if re.fullmatch(r"-?[\d.]+", str(each)) else str(each) for each in values]
