"""How much preference scores, losses and gradients vary, and why."""
