"""A loss of one's own in `VRPOTrainer`: a function, added to `LOSSES` under a name that `loss_type` then accepts.

    python examples/custom_loss.py        (about ten seconds on a CPU, and as long to import torch)

The logistic loss of DPO pushes the margin of a pair as long as training goes on. The one here, (1 - s)^2, is least
where the score s is 1, so that the policy stops moving away from the reference there. Any function of log-ratios,
ELBOs and lengths will do: the trainer gets the gradient from its slopes. It prints the mean score after training:

    sigmoid      mean score  9.34
    target_one   mean score  0.93
"""

import tempfile

from torch import Tensor
from transformers import set_seed

import llada
from vrpo import LOSSES, LossInputs, PreferenceLoss, VRPOConfig, VRPOTrainer

TOKENIZER = llada.byte_tokenizer()
PAIRS = [{"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(32)]


def target_one(inputs: LossInputs, options: PreferenceLoss) -> Tensor:
    """(1 - s)^2 for each pair, [P], with s = beta (log-ratio of chosen - log-ratio of rejected)."""
    return (1 - options.beta * inputs.ratio.margin).square()


LOSSES["target_one"] = target_one


def score_after_training(loss: str, steps: int) -> float:
    """The mean score of all pairs after training a new model with a loss; 0 before."""
    set_seed(0)
    ids = llada.special_ids(TOKENIZER)
    config = llada.LLaDAConfig(
        d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=64, max_sequence_length=16, rope_theta=100.0,
        vocab_size=len(TOKENIZER), mask_token_id=ids.mask, eos_token_id=ids.eos, pad_token_id=ids.pad,
    )  # fmt: skip
    settings = VRPOConfig(
        tempfile.mkdtemp(), loss_type=[loss], beta=0.2, n_t=4, max_steps=steps, per_device_train_batch_size=16,
        gradient_accumulation_steps=1, learning_rate=3e-3, warmup_steps=0, lr_scheduler_type="constant", use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, logging_strategy="no", log_level="error",
    )  # fmt: skip
    model = llada.LLaDAModelLM(config)
    trainer = VRPOTrainer(model, args=settings, train_dataset=PAIRS, eval_dataset=PAIRS, processing_class=TOKENIZER)
    trainer.train()
    return trainer.evaluate()["eval_rewards/margins"]


def main(steps: int = 60) -> dict[str, float]:
    """Train with DPO's loss and with ours, print and return the mean score after each."""
    scores = {loss: score_after_training(loss, steps) for loss in ("sigmoid", "target_one")}
    for loss, score in scores.items():
        print(f"{loss:12} mean score {score:5.2f}")
    return scores


if __name__ == "__main__":
    main()
