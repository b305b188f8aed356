"""The loss by masking probability, on fixed masks of fixed held-out rows.

    loss of bin k = - sum_{rows} sum_{i masked} log p(y_i | y_t, x) / number of masked tokens,    t in [k/10, (k+1)/10)

in nats for each masked token. Each row has one mask for each of the ten bins, with t uniform in it; the masks of a row
are drawn from a stream of its own, and are the same at every evaluation of every run with the same seed.

Shapes: B sequences, L tokens, K bins, R rows of a forward pass.
"""

import torch
from torch import Tensor, nn

from llada.diffusion.forwards import Forward, whole_batches
from llada.diffusion.likelihood import mask_id_of
from llada.diffusion.masking import MaskDraws, bernoulli_draws, corrupt, draw_rows, timesteps
from llada.diffusion.random_streams import CHOSEN, REJECTED, TIMESTEPS, generator_for
from llada.record.rows import batches, held_out_rows, sides_of
from llada.training.base import DiffusionTrainerBase
from llada.training.batching import forwards_of
from llada.training.distributed import is_sharded
from llada.training.progress import TIMESTEP

ROWS, BINS = 32, 10  # held-out rows, at most; bins of the masking probability
SIDES = {1: ("",), 2: ("_chosen", "_rejected")}


def bin_masks(batch: dict[str, Tensor], seed: int) -> MaskDraws:
    """One mask of each sequence of a batch for each bin, [K, B, L]; masked tokens have the weight 1."""

    def draw_row(length: int, generator) -> tuple[Tensor, Tensor]:
        masked_KL, _ = bernoulli_draws(timesteps(BINS, generator, "stratified"), length, generator, eps=0.0)
        return masked_KL, torch.ones(BINS, dtype=torch.float64)

    examples = batch["example_id"].tolist()
    sides = (CHOSEN, REJECTED)[: sides_of(batch)]
    generators = [generator_for(seed, TIMESTEPS, example, side) for side in sides for example in examples]
    return draw_rows(batch["response_mask"], generators, BINS, draw_row)


class TimestepLoss:
    """The loss by bin of a trainer's first held-out rows. The masks are drawn once.

    On several processes, each runs its share of the forward passes; engines that shard parameters need all processes in
    each pass, and there every process runs all.
    """

    def __init__(self, trainer: DiffusionTrainerBase):
        self.trainer = trainer
        rows = [] if (found := held_out_rows(trainer)) is None else found
        self.work: list[tuple[dict[str, Tensor], MaskDraws, Forward]] = []
        self.sides = 1
        for batch in batches(trainer, rows, ROWS):
            draws, attention_BL = bin_masks(batch, trainer.args.seed), batch["attention_mask"]
            packed = "segment_ids" in batch
            width, lengths = attention_BL.shape[1], [attention_BL.shape[1]] * len(attention_BL)
            passes = whole_batches(range(BINS), lengths, width) if packed else forwards_of(
                trainer, attention_BL, range(BINS)
            )  # fmt: skip
            self.work += [(batch, draws, rows) for rows in passes]
            self.sides = sides_of(batch)

    def __call__(self, module: nn.Module) -> dict[str, float]:
        """The loss of each bin that has a masked token, by its name in the log. All processes must call this.

        Args:
            module: the model, without an engine's wrapper unless the engine shards parameters.
        """
        accelerator, args = self.trainer.accelerator, self.trainer.args
        # For each side and bin: nats and masked tokens.
        sums = torch.zeros(self.sides * BINS, 2, dtype=torch.float64)
        own = self.work if is_sharded(accelerator) else self.work[args.process_index :: args.world_size]
        for batch, draws, rows in own:
            nats_R, masked_R = self.forward(module, batch, draws, rows)
            pairs = len(batch["input_ids"]) // self.sides
            at_R = [b // pairs * BINS + draw for draw, b in zip(rows.draws, rows.sequences, strict=True)]
            sums.index_add_(0, torch.tensor(at_R), torch.stack([nats_R, masked_R], -1))
        if not is_sharded(accelerator):
            sums = accelerator.reduce(sums.to(args.device), "sum").cpu()
        names = [f"{TIMESTEP}{side}/{(k + 0.5) / BINS:.2f}" for side in SIDES[self.sides] for k in range(BINS)]
        values = zip(names, sums.tolist(), strict=True)
        return {name: nats / masked for name, (nats, masked) in values if masked}

    def forward(self, module: nn.Module, batch, draws: MaskDraws, rows: Forward) -> tuple[Tensor, Tensor]:
        """Negative log-probabilities of the masked tokens and their number, [R] each, float64 on the CPU."""
        device, index, columns = self.trainer.args.device, list(rows.sequences), slice(rows.width)
        denoiser = self.trainer.denoiser(module)
        if "segment_ids" in batch:
            denoiser.segment_ids = batch["segment_ids"][index, columns].to(device)
        masked_RL = rows.masks(draws)[0].to(device)
        noisy_RL, target_RL = corrupt(batch["input_ids"][index, columns].to(device), masked_RL, mask_id_of(denoiser))
        values_RL = denoiser.log_probs(noisy_RL, target_RL, batch["attention_mask"][index, columns].to(device))
        return -values_RL.double().sum(-1).cpu(), masked_RL.double().sum(-1).cpu()
