"""The gradient of one micro-batch of pairs: which rows are forwarded together, scores, losses and their slopes.

Shapes: S draws, P pairs, B = 2P responses (the P chosen, then the P rejected), K token weights of an ELBO, R rows of a
forward pass.
"""

from functools import partial

import torch
from torch import Tensor, nn

from llada.diffusion.forwards import Forward, of_sequence, row_lengths
from llada.diffusion.likelihood import in_order, row_elbos
from llada.diffusion.masking import MaskDraws
from llada.training.batching import forwards_of, tokens_of_forward
from llada.training.distributed import deepspeed_steps, reduce_gradients
from vrpo.losses.pairwise import LossInputs
from vrpo.scores import PairScores
from vrpo.training.gradients import graph_gradient, unit_gradient


class PairStep:
    """One micro-batch of pairs on its way to a gradient.

    forwards: the forward passes of all rows, for the reference too: of equal models, all scores are then equal.
    loss_P: the loss of each pair, once `add_gradient` has run; auxiliary: the micro-batch's share of auxiliary losses.
    """

    def __init__(self, trainer, model: nn.Module, inputs: dict[str, Tensor], share_P: Tensor, draws: MaskDraws):
        self.trainer, self.inputs, self.share_P, self.draws = trainer, inputs, share_P, draws
        # Data-parallel wrappers reduce gradients in a backward pass that they have prepared; here that is done once, at
        # the end of a step, so that processes need not agree on the number of forward passes.
        self.reduces = isinstance(model, nn.parallel.DistributedDataParallel)
        self.model = model.module if self.reduces else model
        self.weights = trainer.token_weights(inputs)
        self.auxiliary = torch.zeros(())
        self.pending: list[Tensor] = []  # auxiliary losses of forward passes whose backward pass is to come
        self.loss_P = torch.zeros(0)
        self.number, self.pairs = len(draws.masked_SBL), len(share_P)
        if not trainer.plan.made:
            trainer.plan.make(self)
        kept = trainer.plan.kept_draws(self.number, inputs["input_ids"].numel())
        self.units = trainer.plan.unit_gradients and kept < self.number
        self.replayed, self.kept = (
            forwards_of(trainer, inputs["attention_mask"], each, trainer.args.draws_per_forward)
            for each in (range(self.number - kept), range(self.number - kept, self.number))
        )
        self.of_responses = self.forwards_of_responses()

    def forwards_of_responses(self) -> list[list[Forward]]:
        """For each response, forward passes of its draws in their order."""
        attention_BL = self.inputs["attention_mask"]
        most = tokens_of_forward(attention_BL, self.trainer.args.draws_per_forward)
        lengths = row_lengths(attention_BL)
        return [of_sequence(b, length, range(self.number), max(1, most // length)) for b, length in enumerate(lengths)]

    @property
    def forwards(self) -> list[Forward]:
        return [rows for each in self.of_responses for rows in each] if self.units else self.replayed + self.kept

    def elbos(self, rows: Forward) -> Tensor:
        """ELBOs of the policy for the rows of a forward pass, [K, R] in nats, with a graph where that is enabled."""
        ids, attention_BL = self.inputs["input_ids"], self.inputs["attention_mask"]
        with self.trainer.compute_loss_context_manager():
            denoiser = self.trainer.denoiser(self.model)
            elbos_KR = row_elbos(denoiser, ids, self.draws, rows, attention_BL, self.weights)
            if torch.is_grad_enabled() and denoiser.auxiliary_losses:
                loss = self.trainer.auxiliary_loss(denoiser, self.share_P.repeat(2) / 2)
                self.pending.append(loss / self.number)
        return elbos_KR

    def backward(self, term: Tensor) -> None:
        """Add the gradient of a scalar, and of the auxiliary losses of its forward passes, to the parameters."""
        # The shares already divide by the rows of the step; DeepSpeed would divide by the micro-batches again.
        options = {"scale_wrt_gas": False} if self.trainer.is_deepspeed_enabled else {}
        auxiliary = sum(self.pending, torch.zeros((), device=term.device))
        self.pending.clear()
        self.auxiliary = self.auxiliary + auxiliary.detach().cpu()
        self.trainer.accelerator.backward(term + auxiliary, **options)

    def slopes(self, reference: PairScores, pairs: list[int], policy_KSB: Tensor) -> Tensor:
        """Keep the loss of some pairs, and return its derivative by the policy's ELBO draws, [K, 2 pairs]."""
        part = {key: self.inputs[key][pairs] for key in ("example_id", "row", "row_weight")}
        part["response_mask"] = self.inputs["response_mask"][pairs + [self.pairs + pair for pair in pairs]]
        policy, *whole = (PairScores.split(elbo_SB.mean(0).requires_grad_()) for elbo_SB in policy_KSB)
        mean = reference.map(lambda draws_SP: draws_SP[:, pairs].mean(0))
        length = PairScores.split(part["response_mask"].sum(-1))
        inputs = LossInputs(policy - mean, policy, length, whole[0] if whole else None)
        loss_P = self.trainer.pair_losses(inputs, part)
        leaves = [side for elbo in (policy, *whole) for side in (elbo.chosen, elbo.rejected)]
        found = torch.autograd.grad((self.share_P[pairs] * loss_P).sum(), leaves, materialize_grads=True)
        self.loss_P = torch.cat([self.loss_P.to(loss_P), loss_P.detach()])
        return torch.cat(found).view(len(policy_KSB), -1) / self.number

    def add_gradient(self, reference: PairScores) -> Tensor:
        """Add the gradient to the parameters; return the policy's ELBO draws, [K, S, B]."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        policy_KSB = self.by_units(reference, parameters) if self.units else self.by_graphs(reference)
        if self.reduces and self.trainer.accelerator.sync_gradients:
            reduce_gradients(parameters)
        return policy_KSB

    def by_units(self, reference: PairScores, parameters: list[nn.Parameter]) -> Tensor:
        values: list[Tensor] = []

        def slopes(pair: int, policy_KS2: Tensor) -> list[float]:
            values.append(policy_KS2)
            return self.slopes(reference, [pair], policy_KS2)[0].tolist()

        unit_gradient(parameters, self.pairs, self.elbos, slopes, self.backward, self.of_responses)
        return torch.stack(values, -1).flatten(2)  # [K, S, 2, P] as [K, S, 2P]

    def by_graphs(self, reference: PairScores) -> Tensor:
        found = torch.zeros(0)

        def slopes(values: list[Tensor]) -> Tensor:
            nonlocal found
            found = in_order(torch.cat(values, 1), self.forwards, self.number, 2 * self.pairs)
            return self.slopes(reference, list(range(self.pairs)), found)

        around = partial(deepspeed_steps, self.trainer.accelerator)
        graph_gradient(self.elbos, slopes, self.backward, self.kept, self.replayed, around)
        return found
