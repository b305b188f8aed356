"""Scoring the reference before training (`precompute_ref_log_probs`), so that a run holds one model afterwards.

As training begins, the reference scores each different row under the masks of each pass, and the rows of evaluation
under theirs, unless these scores are stored already (`vrpo.training.reference_table`). Runs that differ in loss, rate
or adapters share them; whatever decides a score is compared by name before they are read.

Shapes: N rows, P pairs of a batch, S draws, L tokens.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import TrainerCallback

from llada.cli.fingerprint import hash_of, hash_of_tokenizer
from llada.diffusion.random_streams import EVALUATION
from llada.errors import DataError
from llada.output import lock
from llada.training.distributed import is_sharded, on_first_process
from vrpo.estimators.protocol import Design
from vrpo.training.reference_table import ReferenceTable

# Fields of a config that decide no score, or that the identity has by itself. Special ids are aligned with the
# tokenizer's when training begins, and only that of the mask decides a score.
IGNORED = {"_name_or_path", "transformers_version", "architectures", "dtype", "use_cache", "router_aux_loss_coef"}
WRAPPERS = ("base_model.model.", "base_layer.", "original_module.")  # parts of names that PEFT adds


@contextlib.contextmanager
def whole(weight: Tensor | None) -> Iterator[None]:
    """A context in which a weight that ZeRO-3 keeps in pieces is whole."""
    if hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            yield
    else:
        yield


def hash_of_reference(model: nn.Module) -> str:
    """The XXH3 hash of the weights of a model that training does not change, with their names, shapes and dtypes.

    It is the same for a model and for one with new adapters, which is the reference with these off.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    trained = {name for name, weight in parameters.items() if weight.requires_grad}
    hasher = xxhash.xxh3_128()
    found = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    plain = {name: name for name in found.keys() - trained}
    for wrapper in WRAPPERS:
        plain = {name: short.replace(wrapper, "") for name, short in plain.items()}
    for name in sorted(plain, key=lambda name: plain[name]):
        with whole(parameters.get(name)):
            value = parameters[name].data if hasattr(parameters.get(name), "ds_id") else found[name]
            value = value.full_tensor() if isinstance(value, DTensor) else value  # which FSDP2 keeps in pieces
            hasher.update(f"{plain[name]} {value.dtype} {tuple(value.shape)}".encode())
            hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()


def hash_of_architecture(model: nn.Module) -> str | None:
    """The hash of what a model's config says of its computation; None for a model without a config."""
    if not hasattr(model, "config"):
        return None
    fields = model.config.to_dict().items()
    return hash_of({name: value for name, value in fields if name not in IGNORED and not name.endswith("_token_id")})


@dataclass(frozen=True)
class Row:
    """A row of a dataset: its number there, its tokens on the longer side, and a hash of all that the model gets."""

    dataset: Any
    number: int
    width: int
    content: str


class Rows:
    """The different rows of some datasets.

    found: by example id, ascending. content: a hash of all of them, whatever their order.

    Raises:
        DataError: different rows have the same example id.
    """

    def __init__(self, datasets: list, collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]]):
        self.collate = collate
        found: dict[int, Row] = {}
        for dataset in datasets:
            for number, columns in enumerate(dataset):
                batch = collate([columns])
                width = int(batch["attention_mask"].sum(-1).max())
                sides = [batch[key][:, :width].long() for key in ("input_ids", "attention_mask", "response_mask")]
                content = xxhash.xxh3_64_hexdigest(torch.stack(sides).numpy().tobytes())
                example = int(batch["example_id"])
                row = found.setdefault(example, Row(dataset, number, width, content))
                if row.content != content:
                    raise DataError(
                        f"rows {row.number} and {number} have the same example id ({example}) and other tokens or "
                        "another end of the prompt, so that stored scores do not tell them apart: leave one of them "
                        "or precompute_ref_log_probs out"
                    )
        self.found = dict(sorted(found.items()))
        self.content = f"{len(found)} rows, {hash_of([(example, row.content) for example, row in self.found.items()])}"

    def batch(self, rows: list[Row]) -> dict[str, Tensor]:
        return self.collate([row.dataset[row.number] for row in rows])


@dataclass(frozen=True)
class Part:
    """Rows that are scored alike: of training, or of evaluation."""

    name: str
    design: Design
    epochs: list[int]
    rows: Rows
    identity: dict[str, Any]

    @property
    def numbers(self) -> dict[int, int]:
        """The number of each row in its dataset, by example id."""
        return {example: row.number for example, row in self.rows.found.items()}


class PrecomputedReference(TrainerCallback):
    """Gives a `VRPOTrainer` its `reference_table` as training begins, and frees the memory of its reference.

    It is made before an engine shards the reference, whose weights it hashes.
    """

    def __init__(self, trainer) -> None:
        self.trainer = trainer
        args = trainer.args
        self.folder = Path(args.ref_log_probs_dir or Path(args.output_dir, "reference"))
        output_dir = Path(args.output_dir).resolve()
        if self.folder.resolve() == output_dir:
            raise ValueError(
                f"ref_log_probs_dir={self.folder} is output_dir, where the model gets a manifest of its own: name "
                "another directory"
            )
        self.within = self.folder.resolve().parent == output_dir  # `overwrite` of a recipe deletes it there
        model = trainer.model if trainer.ref_model is None else trainer.ref_model
        self.reference = {
            "reference": hash_of_reference(model),
            "config": hash_of_architecture(model),
            "mask_token_id": trainer.spec.mask_id,
            "dtype": str(next(model.parameters()).dtype),
        }
        self.parts: list[Part] = []
        self.dropped = False

    def on_train_begin(self, args, state, control, **kwargs):
        trainer, held_out = self.trainer, self.trainer.eval_dataset
        epochs = list(range(int(state.epoch or 0), state.num_train_epochs))
        self.parts = [self.part("training", trainer.design, epochs, [trainer.train_dataset])]
        if held_out is not None:
            datasets = list(held_out.values()) if isinstance(held_out, dict) else [held_out]
            self.parts.append(self.part("evaluation", trainer.evaluation_design, [EVALUATION], datasets))
        if not self.within:  # else it may be of the run that `overwrite` deletes when all callbacks have been here
            self.check()

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.parts:
            self.prepare()
            self.parts = []

    def part(self, name: str, design: Design, epochs: list[int], datasets: list) -> Part:
        trainer, args = self.trainer, self.trainer.args
        rows = Rows(datasets, trainer.collator(training=name == "training"))
        batch = rows.batch(list(rows.found.values())[:1])
        epoch = EVALUATION if name == "evaluation" else 0
        # The masks themselves, since another release, of torch too, may draw others from the same seed.
        masked_SBL = trainer.masks(design, batch, epoch)[1].masked_SBL & batch["response_mask"]
        identity = self.reference | {
            "mixed_precision": str(trainer.accelerator.mixed_precision),
            "tokenizer": hash_of_tokenizer(trainer.processing_class),
            "data": rows.content,
            "design": repr(design),
            "seed": args.seed,
            "masks": hash_of([row_L.nonzero().flatten().tolist() for row_L in masked_SBL.flatten(0, 1)]),
            "eos_tail": args.eos_tail,
            "ld_alpha": args.ld_alpha,
        }
        return Part(name, design, epochs, rows, identity)

    def check(self) -> None:
        """Raise ValueError unless the directory can be used; see `ReferenceTable.check`."""
        table = ReferenceTable(self.folder)
        for part in self.parts:
            on_first_process(partial(table.check, part.name, part.identity, part.numbers))

    def prepare(self) -> None:
        """Read the scores that are stored, score the others, and let the reference go."""
        self.check()
        trainer, table = self.trainer, ReferenceTable(self.folder)
        epochs = [epoch for part in self.parts for epoch in part.epochs]
        table.scores = on_first_process(lambda: table.read(epochs))
        read, all_rows = len(table.scores), sum(len(part.rows.found) for part in self.parts)
        if read < len(epochs):
            self.score_missing(table)
        if trainer.is_world_process_zero() and trainer.args.log_level not in ("error", "critical"):
            print(
                f"Reference: {all_rows} rows are scored for {len(epochs)} passes, evaluation's included; {read} of the "
                f"passes were stored in {self.folder}. From here on it is not run."
            )
        trainer.reference_table = table
        if trainer.ref_model is not None:
            trainer.ref_model, self.dropped = None, True
            clear_device_cache(garbage_collection=True)

    def score_missing(self, table: ReferenceTable) -> None:
        """Score and store what a table lacks.

        Raises:
            ValueError: the reference was let go before, in an earlier call of `train`.
            OutputError: another run writes the same directory, or it cannot be written.
        """
        if self.dropped:
            raise ValueError(
                "the scores of the reference are stored for fewer epochs than this call of train() has, and the "
                "reference is no longer in memory: make a new trainer"
            )
        with contextlib.ExitStack() as stack:
            held = self.trainer.args.output_dir if self.within else self.folder
            on_first_process(lambda: stack.enter_context(lock(held)))
            for part in self.parts:
                ids_N = torch.tensor(list(part.rows.found))
                for epoch in part.epochs:
                    if epoch not in table.scores:
                        table.scores[epoch] = ids_N, self.score(part, epoch)
                        on_first_process(partial(table.write, part.name, part.identity, epoch))

    def score(self, part: Part, epoch: int) -> Tensor:
        """ELBO draws of the reference for the rows of a part in the order of `Rows.found`, [N, 2, S] on the CPU.

        Each process scores batches of its own; engines that shard need the same number and size of them on all.
        """
        trainer, args = self.trainer, self.trainer.args
        model, rows = trainer.model_wrapped, list(part.rows.found.values())
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        size = args.precompute_ref_batch_size or args.per_device_train_batch_size
        order = sorted(range(len(rows)), key=lambda index: -rows[index].width)  # similar lengths, the longest first
        all_N2S: Tensor | None = None
        hidden = args.disable_tqdm or not trainer.is_world_process_zero()
        what = "evaluation" if epoch == EVALUATION else f"epoch {epoch}"
        starts = range(0, len(rows), size * args.world_size)
        for start in tqdm(starts, desc=f"reference, {what}", unit="batch", disable=hidden):
            first = start + args.process_index * size
            chosen = [order[place % len(rows)] for place in range(first, first + size)]
            own = chosen[: max(0, len(rows) - first)]  # the last batches are filled up with rows from the start
            if not is_sharded(trainer.accelerator):
                chosen = own or chosen[:1]
            inputs = trainer._prepare_inputs(part.rows.batch([rows[index] for index in chosen]))
            draws = trainer.masks(part.design, inputs, epoch)[1]
            forwards = trainer.forwards(inputs, part.design.n)
            found = trainer.reference_scores(model, inputs, draws, forwards)
            found_P2S = torch.stack([found.chosen, found.rejected]).permute(2, 0, 1)
            if all_N2S is None:
                all_N2S = found_P2S.new_zeros(len(rows), *found_P2S.shape[1:])
            all_N2S[own] = found_P2S[: len(own)]
        assert all_N2S is not None  # a dataset without rows is refused
        return trainer.accelerator.reduce(all_N2S, "sum").cpu()
