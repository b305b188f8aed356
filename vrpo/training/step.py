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
from llada.training.distributed import gradients_reduced, reduce_gradients
from vrpo.losses.pairwise import LossInputs
from vrpo.scores import PairScores
from vrpo.training.gradients import graph_gradient, unit_gradient


class PairStep:
    """One micro-batch of pairs on its way to a gradient.

    loss_P: the loss of each pair, once `add_gradient` has run; auxiliary: the micro-batch's share of auxiliary losses.
    """

    def __init__(self, trainer, model: nn.Module, inputs: dict[str, Tensor], share_P: Tensor):
        self.trainer, self.inputs, self.share_P = trainer, inputs, share_P
        # Data-parallel wrappers reduce gradients in a backward pass that they have prepared; here that is done once, at
        # the end of a step, so that processes need not agree on the number of forward passes.
        self.reduces = isinstance(model, nn.parallel.DistributedDataParallel)
        self.model = model.module if self.reduces else model
        self.weights = trainer.token_weights(inputs)
        self.auxiliary = torch.zeros(())
        self.pending: list[Tensor] = []  # auxiliary losses of forward passes whose backward pass is to come
        self.loss_P = torch.zeros(0)

    def forwards(self, draws: range) -> list[Forward]:
        """Forward passes of some draws of all responses."""
        attention_BL, together = self.inputs["attention_mask"], self.trainer.args.draws_per_forward
        return forwards_of(self.trainer, attention_BL, draws, together)

    def elbos(self, draws: MaskDraws, rows: Forward) -> Tensor:
        """ELBOs of the policy for the rows of a forward pass, [K, R] in nats, with a graph where that is enabled."""
        with self.trainer.compute_loss_context_manager():
            denoiser = self.trainer.denoiser(self.model)
            elbos_KR = row_elbos(
                denoiser, self.inputs["input_ids"], draws, rows, self.inputs["attention_mask"], self.weights
            )
            if torch.is_grad_enabled() and denoiser.auxiliary_losses:
                draws_n = len(draws.masked_SBL)
                self.pending.append(self.trainer.auxiliary_loss(denoiser, self.share_P.repeat(2) / 2) / draws_n)
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
        chosen_and_rejected = pairs + [len(self.share_P) + pair for pair in pairs]
        part = {key: self.inputs[key][pairs] for key in ("example_id", "row", "row_weight")}
        part["response_mask"] = self.inputs["response_mask"][chosen_and_rejected]
        policy, *whole = (PairScores.split(elbo_SB.mean(0).requires_grad_()) for elbo_SB in policy_KSB)
        mean = reference.map(lambda draws_SP: draws_SP[:, pairs].mean(0))
        length = PairScores.split(part["response_mask"].sum(-1))
        inputs = LossInputs(policy - mean, policy, length, whole[0] if whole else None)
        with torch.enable_grad():
            loss_P = self.trainer.pair_losses(inputs, part)
            leaves = [side for elbo in (policy, *whole) for side in (elbo.chosen, elbo.rejected)]
            found = torch.autograd.grad((self.share_P[pairs] * loss_P).sum(), leaves, materialize_grads=True)
        self.loss_P = torch.cat([self.loss_P.to(loss_P), loss_P.detach()])
        return torch.cat(found).view(len(policy_KSB), -1) / policy_KSB.shape[1]

    def add_gradient(self, draws: MaskDraws, reference: PairScores) -> Tensor:
        """Add the gradient to the parameters; return the policy's ELBOs, [K, S, B]."""
        accelerator, plan = self.trainer.accelerator, self.trainer.plan
        if not plan.made:
            plan.make(self, draws)
        number, pairs = len(draws.masked_SBL), len(self.share_P)
        elbos, found = partial(self.elbos, draws), torch.zeros(0)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        kept = plan.kept_draws(number, self.inputs["input_ids"].numel())
        if plan.unit_gradients and kept < number:
            values: list[Tensor] = []

            def pair_slopes(pair: int, policy_KS2: Tensor) -> list[float]:
                values.append(policy_KS2)
                return self.slopes(reference, [pair], policy_KS2)[0].tolist()

            attention_BL = self.inputs["attention_mask"]
            most, lengths = (
                tokens_of_forward(attention_BL, self.trainer.args.draws_per_forward),
                row_lengths(attention_BL),
            )
            forwards = [
                of_sequence(b, length, range(number), max(1, most // length)) for b, length in enumerate(lengths)
            ]
            unit_gradient(parameters, pairs, elbos, pair_slopes, self.backward, forwards)
            found = torch.stack(values, -1).flatten(2)  # [K, S, 2, P] as [K, S, 2P]
        else:
            first, second = self.forwards(range(number - kept)), self.forwards(range(number - kept, number))

            def all_slopes(values: list[Tensor]) -> Tensor:
                nonlocal found
                found = in_order(torch.cat(values, 1), first + second, number, 2 * pairs)
                return self.slopes(reference, list(range(pairs)), found)

            options = {} if self.reduces else {"around": partial(gradients_reduced, accelerator, self.model)}
            graph_gradient(elbos, all_slopes, self.backward, second, first, **options)
        if self.reduces and accelerator.sync_gradients:
            reduce_gradients(parameters)
        return found
