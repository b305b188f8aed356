"""The card of a trained model, its README.md: what it was made of, by which command, and what was measured.

`model_card.md` beside this file is its text.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from llada.data.turns import speaks_in_turns
from llada.training.inputs import has_adapters, parameter_counts
from llada.training.origin import command_of, versions

MARK = "Written by llada-vrpo, which writes it anew when it saves the model again. Without this line the text is kept."
PEFT_CARD = "# Model Card for Model ID"  # in what PEFT writes beside adapters, a form to be filled in
TEMPLATE = Path(__file__).with_name("model_card.md")
SPEED = ("runtime", "_per_second", "epoch", "num_tokens")  # in names of metrics that say nothing of the model
# How the names of the metrics begin that are shown where no rows were held out.
OF_TRAINING = ("train_loss", "loss", "rewards/", "logps/", "score/")
INTERVAL = "_ci95"
LLADA = """@article{nie2025llada,
  title   = {Large Language Diffusion Models},
  author  = {Nie, Shen and Zhu, Fengqi and You, Zebin and Zhang, Xiaolu and Ou, Jingyang and Hu, Jun and Zhou, Jun and
             Lin, Yankai and Wen, Ji-Rong and Li, Chongxuan},
  journal = {arXiv preprint arXiv:2502.09992},
  year    = {2025}
}"""
VRPO = """@article{zhu2025llada15,
  title   = {LLaDA 1.5: Variance-Reduced Preference Optimization for Large Language Diffusion Models},
  author  = {Zhu, Fengqi and Wang, Rongzhen and Nie, Shen and Zhang, Xiaolu and Wu, Chunwei and Hu, Jun and
             Zhou, Jun and Chen, Jianfei and Lin, Yankai and Wen, Ji-Rong and Li, Chongxuan},
  journal = {arXiv preprint arXiv:2505.19223},
  year    = {2025}
}"""


def is_own_text(file: Path) -> bool:
    """Whether a card was written by its user, or has been taken over by one, and is to stay as it is."""
    if not file.exists():
        return False
    text = file.read_text(encoding="utf-8", errors="replace")
    return bool(text.strip()) and MARK not in text and PEFT_CARD not in text


def hub_id(name: str | None) -> str | None:
    """The name of a model or dataset of the hub (owner/name); None for a path, which the hub would refuse."""
    if not name or "/" not in name or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def linked(name: str | None, kind: str = "") -> str:
    """A model or dataset in words: a link to the hub, the name of a local file or directory, or "" without a name.

    Args:
        kind: what comes before the name in the address: "datasets/" of a dataset.
    """
    if not name:
        return ""
    found = hub_id(name)
    return f"[{found}](https://huggingface.co/{kind}{found})" if found else f"`{Path(name).name}`"


def number(value: float) -> str:
    """A number with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def size(rows: Any, unit: str) -> str:
    """The number of rows of a dataset in words; "" of a stream, and of several datasets."""
    return f"{len(rows):,} {unit}" if hasattr(rows, "__len__") and not isinstance(rows, dict) else ""


def metrics_of(history: Sequence[dict[str, Any]]) -> tuple[str, dict[str, str]]:
    """What the metrics of a run are of, and the last value of each: those of evaluations, without any of training."""
    last = {name: (value, line["step"]) for line in history for name, value in line.items() if name != "step"}
    held_out = {name: found for name, found in last.items() if name.startswith("eval_") and "timestep" not in name}
    chosen = held_out or {name: found for name, found in last.items() if name.startswith(OF_TRAINING)}
    steps = {step for _, step in chosen.values()}
    shown = {}
    for name, (value, _) in chosen.items():
        if name.endswith(INTERVAL) or any(word in name for word in SPEED) or isinstance(value, str):
            continue
        half, _ = chosen.get(name + INTERVAL, (None, 0))
        shown[name.removeprefix("eval_")] = number(value) + ("" if half is None else f" +- {number(half)}")
    what = f"Of {'held-out rows' if held_out else 'training'}, after {max(steps, default=0)} steps"
    intervals = "; +- is half of a 95% interval over rows" if any("+-" in value for value in shown.values()) else ""
    return f"{what}{intervals}.", dict(sorted(shown.items()))  # a resumed run logs them in another order


def training_of(trainer, base: str | None, dataset_name: str | None) -> dict[str, str]:
    """The rows of the card's table of the training, those without a value left out."""
    args = trainer.args
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    trained, total = parameter_counts(trainer.model)
    lora: Any = trainer.model.peft_config.get("default") if has_adapters(trainer.model) else None
    kind = f" (LoRA, rank {lora.r}, alpha {lora.lora_alpha})" if hasattr(lora, "lora_alpha") else ""
    held_out = trainer.eval_dataset
    rows = {
        "trainer": type(trainer).__name__,
        "base": "none: trained from scratch" if base == "" else linked(base),
        "data": ", ".join(filter(None, (linked(dataset_name, "datasets/"), size(trainer.train_dataset, trainer.unit)))),
        "held out": "" if held_out is None else size(held_out, trainer.unit) or "yes",
        "parameters": f"{trained:,} trained of {total:,}{kind}",
        "steps": f"{trainer.state.global_step} of {batch} {trainer.unit}",
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler_type.value}",
        "seed": str(args.seed),
    }
    design = getattr(trainer, "design", None)  # preference trainers have one
    if design is not None:
        losses = zip(args.loss_weights, args.loss_type, strict=True)
        rows |= {
            "sampling design": f"{args.estimator}, n = {design.n} masks of each response",
            "beta": f"{args.beta:g} per nat",
            "loss": " + ".join(f"{weight:g} {name}" for weight, name in losses),
        }
    return {label: value for label, value in rows.items() if value}


def card_of(
    trainer,
    name: str,
    base: str | None,
    dataset_name: str | None = None,
    tags: Sequence[str] = (),
    language: str | None = None,
    license: str | None = None,
) -> str:
    """The text of a model's card.

    Args:
        trainer: a trainer of this package, after training. name: of the model.
        base: name or path of the model that training started from; "" for a new one, None if it is not known.
        dataset_name: name or path of the training data; None for rows that were given in Python.
    """
    adapters, preferences = has_adapters(trainer.model), hasattr(trainer, "design")
    data = ModelCardData(
        base_model=hub_id(base), datasets=hub_id(dataset_name), library_name="peft" if adapters else "transformers",
        model_name=name, pipeline_tag="text-generation", tags=list(dict.fromkeys(tags)), language=language,
        license=license,
    )  # fmt: skip
    causal = trainer.spec.attention == "causal"
    kind = "An autoregressive language model" if causal else "A masked diffusion language model"
    of = f", trained from {linked(base)}" if base else ""
    design = " (VRPO)" if getattr(trainer.args, "estimator", None) == "vrpo" else ""
    how = f" by preference optimization{design}" if preferences else ""
    what_metrics, metrics = metrics_of(trainer.state.log_history)
    card = ModelCard.from_template(
        data, template_path=str(TEMPLATE), mark=MARK, name=name, what=f"{kind}{of}{how}.", adapters=adapters,
        repository=getattr(trainer, "hub_model_id", None) or name, causal=causal,
        turns=speaks_in_turns(trainer.processing_class), training=training_of(trainer, base, dataset_name),
        command=shlex.join(command_of(sys.orig_argv)), metrics_of=what_metrics, metrics=metrics,
        versions={key: value for key, value in versions().items() if value},
        citations="\n\n".join([LLADA, VRPO] if preferences else [LLADA]),
    )  # fmt: skip
    return str(card)
