"""Pushing to the hub: which files go there, and that a run outlives a hub that fails."""

import glob
import logging
from concurrent.futures import Future, wait
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, hf_api

from llada.errors import RecipeError
from llada.files import MANIFEST, files_below, replace_file
from llada.training.card import card_of, is_own_text
from llada.training.distributed import on_first_process
from llada.training.inputs import name_of
from llada.training.saving import CARD, WholeCheckpoints

logger = logging.getLogger(__name__)

SAMPLER = "sampler.json"  # `llada.SamplerSettings` saved with a model
MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", SAMPLER, CARD,
)  # fmt: skip
MINUTE = 60.0  # seconds
# The arguments are a pickle that holds `hub_token`, and the manifest lists them.
PRIVATE = ("training_args.bin", MANIFEST)


def model_files(folder: Path) -> list[str]:
    """The names of a directory's files that are the model, its tokenizer, card or sampler settings."""
    names = [name for name in files_below(folder) if "/" not in name]
    return [name for name in names if any(fnmatch(name, pattern) for pattern in MODEL_FILES)]


class Publishing(WholeCheckpoints):
    """A trainer that writes the card of its model, and pushes models without what else lies in `output_dir`.

    The options are those of transformers: `push_to_hub`, `hub_model_id`, `hub_strategy`, `hub_private_repo` and others.
    """

    tags: tuple[str, ...]  # of the model and its card
    push_in_progress: PushInProgress | None = None
    pushed: dict[Path, list[Future]]  # checkpoints that are being pushed; made with the first one

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        finetuned_from: str | None = None,
        language: str | None = None,
        license: str | None = None,
        **others: Any,
    ) -> None:
        """Write the card of the model, README.md in output_dir, unless its user has written one.

        Args:
            model_name: default: the repository's, or that of `output_dir`. dataset_name: of the hub, or a path.
            finetuned_from: default: the name or path from which the model was loaded; "" for a new model.
            others: further arguments of transformers' method, which this card has no place for.
        """
        if not self.is_world_process_zero():
            return
        file = Path(self.args.output_dir, CARD)
        if is_own_text(file):
            logger.warning("%s is kept as it is: delete it to have the card of this run", file)
            return
        name = model_name or Path(self.args.hub_model_id or self.args.output_dir).name
        tags = [tags] if isinstance(tags, str) else list(tags or ())
        base = (name_of(self.model) or None) if finetuned_from is None else finetuned_from
        text = card_of(self, name, base, dataset_name, [*tags, *self.tags], language, license)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, text)  # whole or not at all: half a card would pass for a text of its user

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """`Trainer.init_hf_repo`, which makes the repository; it is called before anything is trained.

        Raises:
            RecipeError: the hub cannot be reached, or refuses.
        """
        try:
            super().init_hf_repo(token, private)
        except Exception as error:
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            raise RecipeError(
                f"push_to_hub: the repository {name} cannot be made or written ({cause_of(error)}). `hf auth login` "
                "logs in; without push_to_hub the run starts, and the same command with --resume true and "
                "--push_to_hub true pushes the model later"
            ) from error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """`WholeCheckpoints.save_model`; with `push_to_hub` the model is pushed, as by transformers."""
        super().save_model(output_dir, _internal_call)
        if self.args.push_to_hub and not _internal_call:
            self.create_model_card()
            self.push_saved()

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """`Trainer.push_to_hub`: save the model, write its card (`create_model_card`) and push both.

        Returns what `huggingface_hub.HfApi.upload_folder` returns; None on the other processes.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**card)
        return self.upload(commit_message, blocking, token, revision)

    def upload(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
    ) -> Any:
        """Push the model that is saved in `output_dir`, with its tokenizer, card and sampler settings."""
        self._finish_current_push()
        folder = Path(self.args.output_dir)
        return self.upload_files(folder, commit_message, model_files(folder), token, revision, not blocking)

    def upload_files(self, folder: Path, message, names=None, token=None, revision=None, later=True, **place: Any):
        """Push files of a directory: those with these names or, without any, all but the private ones."""
        return hf_api().upload_folder(
            repo_id=self.hub_model_id, folder_path=folder, commit_message=message,
            allow_patterns=None if names is None else [glob.escape(name) for name in names],
            ignore_patterns=list(PRIVATE), token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision, run_as_future=later, **place,
        )  # fmt: skip

    def push_saved(self) -> None:
        """Push what is saved in `output_dir` if `push_to_hub` is set; a hub that fails is a warning, not the end.

        All processes must call this: they wait together.
        """
        if not self.args.push_to_hub:
            return
        self.finish_pushes()
        jobs: list[Future] = []
        if self.is_world_process_zero():
            try:
                jobs = [self.upload(blocking=False)]
            except Exception as error:
                jobs = [Future()]
                jobs[0].set_exception(error)
        wait_together(jobs)
        for job in jobs:
            if (cause := job.exception()) is not None:
                logger.warning(
                    "the model was not pushed to %s (%s). It is saved in %s; the same command with --resume true "
                    "pushes it",
                    self.hub_model_id, cause_of(cause), self.args.output_dir,
                )  # fmt: skip

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the model of a checkpoint while training goes on, and the checkpoint itself if `hub_strategy` says so.

        Unlike transformers, nothing is copied into `output_dir`.
        """
        strategy = HubStrategy(self.args.hub_strategy)
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        running = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if running and not self.args.hub_always_push:
            return
        if not running:
            self._finish_current_push()  # nothing to wait for, but maybe a failure to tell
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder, message = Path(checkpoint_folder), f"Training in progress, step {self.state.global_step}"
        jobs = [self.upload_files(folder, message, model_files(folder))]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else folder.name
            jobs.append(self.upload_files(folder, f"{message}, checkpoint", path_in_repo=name))
        # The other processes are in a barrier meanwhile: pushes that are not done are waited for at the end.
        earlier = self.push_in_progress.jobs if running and self.push_in_progress is not None else []
        self.push_in_progress = PushInProgress([*earlier, *jobs])
        self.pushed = getattr(self, "pushed", {}) | {folder: jobs}

    def _finish_current_push(self) -> None:
        """Wait until a push in the background is done, and say if it failed."""
        super()._finish_current_push()
        found, self.push_in_progress = self.push_in_progress, None
        for job in found.jobs if found is not None else ():
            if (error := job.exception()) is not None:
                logger.warning("a checkpoint was not pushed to %s (%s)", self.hub_model_id, cause_of(error))

    def finish_pushes(self) -> None:
        """`_finish_current_push`, for which all processes wait together."""
        wait_together(self.push_in_progress.jobs if self.push_in_progress is not None else [])
        self._finish_current_push()

    def complete_later(self, folder: Path, limit: int | None, kept: list[Path]) -> None:
        """`WholeCheckpoints.complete_later`, which keeps checkpoints that are being pushed."""
        pushed = [
            each for each, jobs in getattr(self, "pushed", {}).items()
            if each not in kept and not all(job.done() for job in jobs)
        ]  # fmt: skip
        super().complete_later(folder, limit, [*kept, *pushed])

    def _finalize_training(self, trial, num_train_samples, start_time):
        # After a signal the time is short: the checkpoint is saved, and the reason is stated first.
        if self.args.push_to_hub and not self.stop.stopped_by:
            self.finish_pushes()  # before checkpoints are deleted
        return super()._finalize_training(trial, num_train_samples, start_time)


def wait_together(jobs: list[Future]) -> None:
    """Wait for what the first process does in the background.

    The processes speak to each other every minute: one that waits for another longer than `ddp_timeout` ends the run.
    """
    while on_first_process(lambda: bool(wait(jobs, timeout=MINUTE).not_done)):
        pass


def cause_of(error: BaseException) -> str:
    """An error of the hub in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
