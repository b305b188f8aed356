"""The reference's ELBOs of all rows, stored in a directory: its files, whose they are, and the look-up.

    ref_log_probs.training.json             what decides the scores of the training rows (the identity), by name
    ref_log_probs.epoch-0.safetensors       their scores under the masks of pass 0: `example_id` [N] int64, ascending,
                                            and `elbo` [N, 2, S] in nats, of chosen and rejected
    ref_log_probs.evaluation.json           the same for the rows of evaluation, whose masks are fixed
    ref_log_probs.evaluation.safetensors
    manifest.json                           sizes and hashes of these files (`llada.files`)

A file counts once the manifest lists it, which is after it is written, and is never changed then; passes are added.

Shapes: N rows, P pairs of a batch, S draws.
"""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from llada.diffusion.random_streams import EVALUATION
from llada.files import flaw_of, has_manifest, read_manifest, replace_file, write_manifest
from llada.output import writing
from vrpo.scores import PairScores

NAME = "ref_log_probs"  # begins the names of the files
REMEDY = (
    "Name another directory (ref_log_probs_dir), or delete this one, which scores the reference again (in a recipe, "
    "overwrite does if it is in output_dir)"
)


def file_of(epoch: int) -> str:
    """The name of the file with the scores of a pass."""
    return f"{NAME}.evaluation.safetensors" if epoch == EVALUATION else f"{NAME}.epoch-{epoch}.safetensors"


class ReferenceTable:
    """Scores of the reference by pass and example id: those in a directory, and in `scores` those that are in memory.

    scores: for each pass, example ids [N], ascending, and ELBOs [N, 2, S] in nats.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.scores: dict[int, tuple[Tensor, Tensor]] = {}

    def listed(self) -> list[str]:
        """The names of the files that are there; none if there is no directory yet.

        Raises:
            ValueError: one is not whole, or the directory holds something else; the message names the file.
        """
        if not has_manifest(self.folder):
            return []
        if flaw := flaw_of(self.folder):
            raise ValueError(f"the reference's scores in {self.folder} are not whole: {flaw}. {REMEDY}")
        names = list(read_manifest(self.folder))
        if other := [name for name in names if not name.startswith(f"{NAME}.")]:
            raise ValueError(
                f"ref_log_probs_dir={self.folder} holds other files than the reference's scores ({other[0]}): name "
                "another directory"
            )
        return names

    def check(self, part: str, identity: dict[str, Any], rows: dict[int, int]) -> None:
        """Raise ValueError if the stored scores of a part of the rows are those of other models, rows or settings.

        Args:
            part: "training" or "evaluation".
            identity: what decides the scores, by name, in types of JSON.
            rows: the number of each row in its dataset, by example id.
        """
        names, heading = self.listed(), f"{NAME}.{part}.json"
        if heading not in names:
            return
        stored = json.loads((self.folder / heading).read_text(encoding="utf-8"))
        found = [name for name in identity | stored if stored.get(name) != identity.get(name)]
        if not found:
            return
        found = [name for name in found if name != "masks"] or found  # which follow from rows, design and seed
        different = "; ".join(f"{name} is {stored.get(name)!r} there and {identity.get(name)!r} here" for name in found)
        raise ValueError(
            f"the reference's scores of the {part} rows in {self.folder} are those of another run: {different}"
            f"{self.first_missing(part, names, rows) if 'data' in found else ''}. {REMEDY}"
        )

    def first_missing(self, part: str, names: list[str], rows: dict[int, int]) -> str:
        """The first row that a stored part lacks, in words; empty if it has them all."""
        files = [file for file in names if file.endswith(".safetensors")]
        files = [file for file in files if (file == file_of(EVALUATION)) == (part == "evaluation")]
        stored = {int(example) for file in files[:1] for example in self.load(file)[0]}
        missing = [row for example, row in rows.items() if example not in stored]
        return f" (row {min(missing)} has no score there)" if missing else ""

    def load(self, name: str) -> tuple[Tensor, Tensor]:
        """Example ids [N] and ELBOs [N, 2, S] of a file."""
        tensors = safetensors.torch.load_file(self.folder / name)
        return tensors["example_id"], tensors["elbo"]

    def read(self, epochs: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """The stored scores of those of the passes that are there; raises as `listed` does."""
        names = self.listed()
        return {epoch: self.load(file_of(epoch)) for epoch in epochs if file_of(epoch) in names}

    def write(self, part: str, identity: dict[str, Any], epoch: int) -> None:
        """Store the scores of a pass that are in memory, beside those that are stored.

        Raises:
            OutputError: they cannot be written. ValueError: as `listed`.
        """
        example_id, elbo = self.scores[epoch]
        with writing(self.folder, "The scores of passes that were stored before are intact"):
            self.folder.mkdir(parents=True, exist_ok=True)
            names, heading = self.listed(), f"{NAME}.{part}.json"
            if heading not in names:
                replace_file(self.folder / heading, json.dumps(identity, indent=1) + "\n")
            content = safetensors.torch.save({"example_id": example_id, "elbo": elbo})
            replace_file(self.folder / file_of(epoch), content)
            write_manifest(self.folder, {*names, heading, file_of(epoch)}, flush=False)  # they are on the disk

    def lookup(self, epoch: int, inputs: dict[str, Tensor]) -> PairScores:
        """ELBO draws [S, P] of a batch under the masks of a pass.

        Raises:
            ValueError: there are no scores of a row or of the pass; the message names them.
        """
        what = "evaluation" if epoch == EVALUATION else f"epoch {epoch}"
        if epoch not in self.scores:
            raise ValueError(
                f"{self.folder} holds no scores of the reference for {what}: with precompute_ref_log_probs, only the "
                "rows that the trainer was made with can be scored"
            )
        (id_N, elbo_N2S), wanted_P = self.scores[epoch], inputs["example_id"].cpu()
        index_P = torch.searchsorted(id_N, wanted_P).clamp(max=len(id_N) - 1)
        for pair in (id_N[index_P] != wanted_P).nonzero()[:1, 0].tolist():
            raise ValueError(
                f"{self.folder} holds no score of the reference for row {int(inputs['row'][pair])} (example id "
                f"{int(wanted_P[pair])}) in {what}: with precompute_ref_log_probs, only the rows that the trainer was "
                "made with can be scored (train_dataset; for evaluation, eval_dataset)"
            )
        chosen, rejected = elbo_N2S[index_P].permute(1, 2, 0).to(inputs["example_id"].device)
        return PairScores(chosen, rejected)
