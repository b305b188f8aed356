"""The forms of a VRPO step that `train_step.py` compares: a plain one, and the trainer's with its savings in turn.

Plain is what one writes without thinking of time and memory: all 2P responses are padded to one batch, each draw is
forwarded by the policy with its graph and by the reference without, the logits are those of all positions [2P, L, V],
and one backward pass goes through the graphs of all draws. Each saving of the trainer is switched off by replacing the
function that makes it. All forms compute the same gradient.

Nothing here needs trl, datasets or deepspeed, which a machine with a GPU may lack: rows are token ids already.
"""

import contextlib
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, logsigmoid
from torch.utils.checkpoint import checkpoint

import vrpo.training.step
import vrpo.training.trainer
from llada import LLaDAConfig, LLaDAModelLM
from llada.data.tokenizer import byte_tokenizer
from llada.diffusion.forwards import row_lengths, whole_batches
from llada.models.common import head
from llada.models.common.base import MaskedLM
from vrpo import VRPOConfig, VRPOTrainer
from vrpo.training.plan import GradientPlan

# (prompt, chosen, rejected) tokens of each pair. Those of GSM8K are bytes of shared/data/gsm8k_preference.jsonl divided
# by 4: of 1,001 random batches of 8 of its pairs, the one whose share of padding is the median (1.68 tokens are
# computed for each real one; 1.37 and 2.32 are the 5th and the 95th percentile).
LENGTHS = {
    "fixed": [(64, 192, 120)] * 2,
    "gsm8k": [
        (119, 92, 65), (48, 99, 81), (36, 72, 37), (36, 38, 49), (45, 57, 72), (78, 91, 34), (20, 36, 34),
        (78, 122, 108),
    ],
}  # fmt: skip
SHAPES = {False: (256, 6, 4, 688, 32_000), True: (64, 2, 2, 172, 1_000)}  # quick: width, blocks, heads, MLP, vocabulary
RANK = 32
FIRST_TOKEN = 262  # the ids below are the byte tokenizer's

GROUPS, ONCE, SKIP, SOFTMAX = "length groups", "no second forward pass", "last block skips", "one softmax in the head"
SAVINGS = (GROUPS, ONCE, SKIP, SOFTMAX)  # in the order in which they are switched on
PLAIN, REPLAY, DEFAULT = "plain", "replay, padded", "default"
FORMS = (PLAIN, REPLAY, *(f"+ {saving}" for saving in SAVINGS), DEFAULT)


@dataclass(frozen=True)
class Case:
    """What is trained on which batch. trained: "full" or "lora"; draws: n for each response."""

    lengths: str
    trained: str
    draws: int
    checkpointing: bool
    quick: bool

    def __str__(self) -> str:
        weights = {"full": "all parameters", "lora": f"LoRA r = {RANK}"}[self.trained]
        checkpointing = ", checkpointing" if self.checkpointing else ""
        return f"{self.lengths}, {weights}{checkpointing}, n = {self.draws}"

    def forms(self, chosen: list[str]) -> list[str]:
        """The forms to compare; with one draw there is no second forward pass."""
        return [form for form in FORMS if form in chosen and (self.draws > 1 or form != f"+ {ONCE}")]


class TokenTrainer(VRPOTrainer):
    """A trainer of rows that are tokenized, in a list."""

    def prepared(self, data, name: str):
        return data


def rows_of(case: Case) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    vocabulary = SHAPES[case.quick][-1]

    def tokens(number: int) -> list[int]:
        number = max(1, number // 4) if case.quick else number
        return torch.randint(FIRST_TOKEN, vocabulary, (number,), generator=generator).tolist()

    pairs = [[tokens(number) for number in lengths] for lengths in LENGTHS[case.lengths]]
    return [
        {
            "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "example_id": row, "row": row,
            "length": len(prompt) + max(len(chosen), len(rejected)),
        }
        for row, (prompt, chosen, rejected) in enumerate(pairs)
    ]  # fmt: skip


def trainer_and_batch(case: Case, folder: str) -> tuple[VRPOTrainer, dict[str, Tensor]]:
    """A trainer whose policy is a little away from its reference, and a batch of all pairs."""
    torch.manual_seed(0)
    width, blocks, heads, inner, vocabulary = SHAPES[case.quick]
    config = LLaDAConfig(
        d_model=width, n_layers=blocks, n_heads=heads, mlp_hidden_size=inner, vocab_size=vocabulary,
        max_sequence_length=512, rope_theta=1e4, mask_token_id=258, eos_token_id=257, pad_token_id=257,
        eot_token_id=261,
    )  # fmt: skip
    rows = rows_of(case)
    lora = None
    if case.trained == "lora":
        from peft import LoraConfig

        lora = LoraConfig(r=RANK, lora_alpha=RANK)
    args = VRPOConfig(
        folder, report_to="none", per_device_train_batch_size=len(rows), gradient_accumulation_steps=1, n_t=case.draws,
        loss_type="sigmoid", eos_tail="0", variance_steps=0, activation_checkpointing=case.checkpointing,
    )  # fmt: skip
    trainer = TokenTrainer(
        LLaDAModelLM(config), args=args, train_dataset=rows, processing_class=byte_tokenizer(), peft_config=lora
    )
    trainer.current_gradient_accumulation_steps = 1
    if case.checkpointing:  # as `train` does
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=3e-4)
    return trainer, trainer.data_collator(rows)


def plain_elbos(trainer: VRPOTrainer, model, inputs: dict[str, Tensor], masked_BL: Tensor, weight_BL: Tensor) -> Tensor:
    """ELBOs of one draw, [2P], from the logits of all positions."""
    tokens_BL = inputs["input_ids"]
    noisy_BL = tokens_BL.masked_fill(masked_BL, trainer.spec.mask_id)
    with trainer.compute_loss_context_manager():
        logits_BLV = model(input_ids=noisy_BL, attention_mask=inputs["attention_mask"]).logits
    logits_BLV = logits_BLV.to(head.at_least_fp32(logits_BLV.dtype))
    log_probs_BL = logits_BLV.log_softmax(-1).gather(-1, tokens_BL[..., None])[..., 0]
    return (weight_BL.to(log_probs_BL) * log_probs_BL).sum(-1)


def plain_step(trainer: VRPOTrainer, batch: dict[str, Tensor]) -> None:
    model, inputs = trainer.model, trainer._prepare_inputs(batch)
    model.train()
    masks, _ = trainer.masks(trainer.design, inputs, trainer.epoch)  # which the reference shares
    policy, reference = [], []
    for masked_BL, weight_BL in zip(masks.masked_SBL, masks.weight_SBL, strict=True):
        draw = (inputs, masked_BL.to(model.device), weight_BL.to(model.device))
        policy.append(plain_elbos(trainer, model, *draw))
        with torch.no_grad(), trainer.reference_model(model) as frozen:
            reference.append(plain_elbos(trainer, frozen, *draw))
    ratio_B = torch.stack(policy).mean(0) - torch.stack(reference).mean(0)
    chosen_P, rejected_P = ratio_B.chunk(2)
    (-logsigmoid(trainer.args.beta * (chosen_P - rejected_P)).mean()).backward()


def padded_forwards(trainer, attention_BL: Tensor, draws: range, draws_per_forward=None):
    """In place of `forwards_of`: each draw of the padded batch by itself."""
    return whole_batches(draws, row_lengths(attention_BL), attention_BL.shape[1])


def naive_log_probs(hidden_ND: Tensor, targets_N: Tensor, weight_VD: Tensor) -> Tensor:
    logits_NV = linear(hidden_ND, weight_VD)
    return -cross_entropy(logits_NV.to(head.at_least_fp32(logits_NV.dtype)), targets_N, reduction="none")


@contextlib.contextmanager
def without(savings: set[str]):
    """Switch savings off."""
    with contextlib.ExitStack() as replaced:
        if GROUPS in savings:
            for module in (vrpo.training.step, vrpo.training.trainer):
                replaced.enter_context(patch.object(module, "forwards_of", padded_forwards))
        if SKIP in savings:
            replaced.enter_context(patch.object(MaskedLM, "last_block_may_skip", False))
        if SOFTMAX in savings:  # logits are computed again in the backward pass
            again = partial(checkpoint, naive_log_probs, use_reentrant=False)
            replaced.enter_context(patch.object(head, "HeadLogProbs", SimpleNamespace(apply=again)))
        yield


class Step:
    """A step of one form, which adds its gradient to the parameters.

    The default form chooses its plan in its first call from the memory that is free, and keeps it.
    """

    def __init__(self, trainer: VRPOTrainer, batch: dict[str, Tensor], form: str):
        self.trainer, self.batch, self.form = trainer, batch, form
        if form not in (PLAIN, DEFAULT):
            on = SAVINGS[: FORMS.index(form) - FORMS.index(REPLAY)]
            self.off = set(SAVINGS) - set(on)
        else:
            self.off = set()
        self.plan = vars(GradientPlan())
        if form != DEFAULT:
            self.plan |= {"made": True, "kept": 1, "unit_gradients": ONCE not in self.off}

    def __call__(self) -> None:
        if self.form == PLAIN:
            plain_step(self.trainer, self.batch)
            return
        vars(self.trainer.plan).update(self.plan)
        with without(self.off):
            self.trainer.training_step(self.trainer.model, self.batch)
        self.plan = dict(vars(self.trainer.plan))
