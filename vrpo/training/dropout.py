"""Dropout in a preference run: it would differ between policy and reference, so all of it is set to 0."""

import logging

from torch import nn

logger = logging.getLogger(__name__)


def disable_dropout(models: list[nn.Module]) -> None:
    """Set the dropout of all modules to 0, and warn of their number if there is any.

    Layers of dropout have their rate in `p`. PEFT's LoHa and LoKr layers have none: they drop modules and ranks
    themselves, at rates that they keep for each adapter (`module_dropout`, `rank_dropout`).
    """
    changed = sum(turn_off(module) for model in models for module in model.modules())
    if changed:
        logger.warning("%d dropout layers were set to 0: their noise would differ between the models", changed)


def turn_off(module: nn.Module) -> bool:
    """Set a module's own rates of dropout to 0; whether there were any above 0."""
    found = False
    if "Dropout" in type(module).__name__ and is_rate(getattr(module, "p", None)):
        module.p, found = 0.0, True
    for name, value in [(name, value) for name, value in vars(module).items() if "dropout" in name]:
        if is_rate(value):
            setattr(module, name, 0.0)
            found = True
        elif isinstance(value, dict):
            rates = {adapter: rate for adapter, rate in value.items() if is_rate(rate)}
            value.update(dict.fromkeys(rates, 0.0))
            found = found or bool(rates)
    return found


def is_rate(value) -> bool:
    """Whether a value is a rate of dropout above 0; flags such as LoKr's `rank_dropout_scale` are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
