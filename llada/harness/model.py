"""The model `llada` of lm-evaluation-harness: likelihoods by ELBO, answers by the diffusion sampler.

Importing this file registers it. Its options are those of `llada.harness.settings`.
"""

from argparse import Namespace
from collections import Counter
from functools import partial
from itertools import chain
from statistics import mean
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llada.cli.adapters import settings_folder
from llada.cli.arguments import SamplerOptions, fit_context, note, override, sampler_settings
from llada.cli.checkpoint import load_config, load_merged, load_model
from llada.cli.fingerprint import fingerprint, hash_of
from llada.denoiser import as_denoiser
from llada.diffusion.scoring import Scorer
from llada.errors import RecipeError
from llada.harness.generation import generated, wanted
from llada.harness.greedy import is_greedy
from llada.harness.requests import Encoded, fit, place, question_of, questions
from llada.harness.settings import read_options
from llada.sampling.block_cache import SamplerStats
from llada.sampling.guidance import GuidedDenoiser
from llada.sampling.presets import preset
from llada.sampling.settings import SamplerSettings

QUESTIONS = 16  # scored between two writes to the harness's cache
IN_MEMORY = "a model in memory"
NO_MATTER = ("pretrained", "preset", "device", "batch_size")  # to answers: the model's files and the settings do


@register_model("llada")
class HarnessModel(TemplateLM):
    """A masked diffusion language model for `lm_eval`.

    Args:
        pretrained: a model or adapter directory, a hub name, or a model in memory, which needs its `tokenizer`.
        max_batch_size: of the harness, for its automatic batch sizes, which this model does not have.
        exact_sampler: sampler settings in place of those of options, preset and the model's files.
        files: hashes of the files that a model in memory is from (`llada.cli.fingerprint`), for the harness's cache.
        options: see `llada.harness.settings.HarnessSettings`; the rest are sampler settings by name.

    Raises:
        ValueError: an option is unknown or out of range, or there is no such model (`llada.cli.checkpoint`).
    """

    def __init__(
        self, pretrained: str | PreTrainedModel = "", tokenizer: PreTrainedTokenizerBase | None = None,
        max_batch_size: int | None = None, exact_sampler: SamplerSettings | None = None,
        files: dict[str, Any] | None = None, **options: Any,
    ):  # fmt: skip
        super().__init__()
        if isinstance(size := options.get("batch_size"), str):  # the command line's
            if not size.isdigit():
                raise RecipeError(f"batch_size={size!r} must be a number of rows: this model has no automatic size")
            options["batch_size"] = int(size)
        in_memory = None if isinstance(pretrained, str) else pretrained
        self.options, sampler = read_options({"pretrained": pretrained if in_memory is None else IN_MEMORY} | options)
        if in_memory is None:
            self.tokenizer, config = load_config(self.options.pretrained)
        else:
            assert tokenizer is not None
            self.tokenizer, config = tokenizer, in_memory.config
        context = config.denoiser_spec.context
        self.sampler = exact_sampler or self.settings_of_sampler(sampler, context, in_memory is None)
        lengths = (sampler.gen_length, sampler.block_length, sampler.steps)
        self.own_length = bool(
            exact_sampler or self.options.preset or any(value is not None for value in lengths)
            or (in_memory is None and settings_folder(self.options.pretrained))
        )  # fmt: skip
        spec = config.denoiser_spec
        if spec.attention == "causal" and self.sampler.cfg_scale:
            raise RecipeError(f"cfg_scale={self.sampler.cfg_scale}: guidance is of masked diffusion models")
        # What comes before a text without a context: an autoregressive model needs a token there.
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else spec.eos_id
        self.prefix = [start] if spec.attention == "causal" else []
        self.room = min(context, self.options.max_length or context)
        answering = {name: value for name, value in vars(self.options).items() if name not in NO_MATTER}
        self.files = files if in_memory is not None else fingerprint(self.options.pretrained, config, self.tokenizer)
        self.identity = hash_of([self.files, answering, vars(self.sampler), self.own_length])
        state = PartialState(cpu=self.options.device == "cpu" or not torch.cuda.is_available())
        self._rank, self._world_size = state.process_index, state.num_processes
        if in_memory is None:
            named_device = self.options.device not in ("auto", "cuda")
            self._device = torch.device(self.options.device) if named_device else state.device
            load = load_causal if config.causal else load_model
            self.model = load(self.options.pretrained, config, self.options.dtype).to(self._device)
        else:
            self.model, self._device = in_memory, in_memory.device
        self.stats, self.rows, self.errors = SamplerStats(), 0, list[float]()

    def settings_of_sampler(self, options: SamplerOptions, context: int, saved: bool) -> SamplerSettings:
        """The preset's settings or those saved with the model, if it is `saved`, with the options in their place."""
        if saved:
            named = Namespace(model=self.options.pretrained, preset=self.options.preset)
            return fit_context(sampler_settings(named, options), named, options, context)
        settings = override(preset(self.options.preset) if self.options.preset else SamplerSettings(), options)
        settings.check_blocks()
        return settings

    # What the harness asks a model for.

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Token ids of a text as in training: without tokens that it does not spell."""
        return self.tokenizer(string, add_special_tokens=bool(add_special_tokens)).input_ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip

    def all_gather(self, tensor):
        return gather(tensor)

    def gather_object(self, obj, dst: int = 0):
        if self.world_size == 1:
            return [obj]
        found = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, found, dst)
        return found

    def barrier(self) -> None:
        PartialState().wait_for_everyone()

    def set_cache_hook(self, cache_hook) -> None:
        """Take the harness's cache of answers.

        Raises:
            RecipeError: it was written by another model or with other options: its answers would be mixed with these;
                or nothing tells this model from another one.
        """
        if cache_hook.dbdict is not None:
            if self.files is None:
                raise RecipeError("use_cache: a model in memory cannot be told from another one. Name its directory")
            before = cache_hook.dbdict.setdefault("llada", self.identity)
            if before != self.identity:
                raise RecipeError(
                    f"use_cache: {cache_hook.dbdict.filename} holds the answers of another model, or of other options: "
                    "name another file"
                )
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness notes of the model in its results: options, cost, and the noise of likelihoods (nats)."""
        return {
            "llada": vars(self.options) | {"sampler": vars(self.sampler), "identity": self.identity},
            "scored_rows": self.rows,
            "sampler_forwards": self.stats.forwards,
            "mean_standard_error": mean(self.errors) if self.errors else None,
        }

    # Likelihood.

    def _loglikelihood_tokens(self, requests, **kwargs):
        raise NotImplementedError("options of one question are scored together: call loglikelihood")

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The ELBO of each continuation in nats, and whether greedy sampling writes it."""
        encoded = []
        for request in requests:
            context, continuation = request.args
            ids = self._encode_pair(context, continuation) if context else (self.prefix, self.tok_encode(continuation))
            if not ids[1]:
                raise RecipeError(f"{place(request)} asks for the likelihood of nothing: {continuation!r}")
            size = max(1.0, float(len(continuation.strip())))
            head, tail = tuple(ids[0] or self.prefix), tuple(ids[1])  # a context of spaces is none
            encoded.append(Encoded(head, tail, size, question_of(request), place(request)))
        found: dict[int, tuple[float, bool]] = {}
        for number, estimate, greedy in self.scored(encoded, disable_tqdm, greedy=True):
            found[number] = estimate.value, greedy
            self.cache_hook.add_partial("loglikelihood", requests[number].args, found[number])
        return [found[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """The ELBO of each text in nats.

        A text that is longer than the context is scored in windows, each with as much of the text before it as fits.
        A finished text goes to the harness's cache.
        """
        encoded, owner = [], list[int]()
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            prefix = -1  # of the harness, for models that need a token before the first: dropped below
            # A window of the harness has one token more, because the last one is no input of an autoregressive model.
            for window in map(make_disjoint_window, get_rolling_token_windows(ids, prefix, self.room - 1, 1)):
                begins = window[0] == [prefix]
                context = tuple(self.prefix if begins else window[0])
                owner.append(number)
                # No two are options of one question, and the stream depends on the tokens alone, if coupled too.
                question = (context, tuple(window[1]), len(owner))
                encoded.append(Encoded(context, tuple(window[1]), 1.0, question, place(request)))
        values, left = [0.0] * len(requests), Counter(owner)
        for index, estimate, _ in self.scored(encoded, disable_tqdm, greedy=False):
            number = owner[index]
            values[number] += estimate.value
            left[number] -= 1
            if not left[number]:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[number].args, values[number])
        return values

    def scored(self, encoded: list[Encoded], disable_tqdm: bool, greedy: bool):
        """Yield the number of each request, its estimate, and whether it is what the model would write."""
        encoded = fit(self.checked(encoded), self.room, self.options.truncate, note)
        numbers, answers = questions(encoded, self.options.coupled)
        guide = partial(guided, scale=self.sampler.cfg_scale) if self.sampler.cfg_scale else None
        denoiser = as_denoiser(self.model)
        scorer = Scorer(denoiser, self.options.scoring(), self.device, guide)
        with tqdm(total=len(encoded), desc="likelihoods", disable=disable_tqdm or self.rank > 0) as bar:
            for start in range(0, len(answers), QUESTIONS):
                part = answers[start : start + QUESTIONS]
                places, flat = (list(chain(*each)) for each in (numbers[start : start + QUESTIONS], part))
                estimates = list(chain(*scorer.score(part)))
                written = is_greedy(denoiser, flat, self.options.batch_size, self.device, guide) if greedy else flat
                self.errors += [each.standard_error for each in estimates]
                yield from zip(places, estimates, written, strict=True)
                bar.update(len(places))
        self.rows += scorer.rows

    def checked(self, encoded: list[Encoded]) -> list[Encoded]:
        """The requests; MASK in a text would be scored as if it were to be predicted.

        Raises:
            RecipeError: a text spells the mask token.
        """
        mask_id = as_denoiser(self.model).spec.mask_id
        for each in encoded:
            if mask_id in each.context or mask_id in each.tokens:
                raise RecipeError(f"{each.where} has text that spells the mask token")
        return encoded

    # Generation.

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Answers, each cut before the first of its stop texts and before EOS."""
        asked = []
        for request in requests:
            context = tuple(self.tok_encode(request.args[0]))
            if not context:
                raise RecipeError(f"{place(request)} has an empty prompt")
            prompt = Encoded(context, (), 1.0, question_of(request), place(request))
            asked.append(wanted(request, prompt, self.sampler, self.own_length))
        longest = max((each.settings.gen_length for each in asked), default=0)
        prompts = fit(self.checked([each.prompt for each in asked]), self.room - longest, self.options.truncate, note)
        asked = [type(each)(prompt, each.settings, each.until) for each, prompt in zip(asked, prompts, strict=True)]
        found: dict[int, str] = {}
        answers = generated(self.model, self.tokenizer, asked, self.options.batch_size, self.options.seed, self.stats)
        for number, text in tqdm(answers, "answers", len(asked), disable=disable_tqdm or self.rank > 0):
            found[number] = text
            self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return [found[number] for number in range(len(requests))]


def load_causal(name: str, config, dtype: str) -> PreTrainedModel:
    return load_merged(name, config, dtype)[0]


def guided(denoiser, given_RW: torch.Tensor, scale: float) -> GuidedDenoiser:
    return GuidedDenoiser(denoiser, given_RW, scale)
