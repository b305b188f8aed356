"""The base class of all model configurations, and the check of their fields."""

from typing import Any

from llada.denoiser import DenoiserSpec


def check_supported(fields: dict, supported: dict[str, tuple]) -> None:
    """Raise ValueError on the first field with an unsupported value; the message lists the supported ones."""
    for field, values in supported.items():
        if field in fields and fields[field] not in values:
            allowed = " or ".join(repr(value) for value in values)
            raise ValueError(f"config field {field}={fields[field]!r} is not supported: it must be {allowed}")


class FamilyConfig:
    """Mixin of the model configurations: describes a model to the rest of the package."""

    def auxiliary_losses(self) -> dict[str, float]:
        """Names and weights of the losses that the model returns in training besides its log-probabilities."""
        return {}

    def describe(self: Any) -> str:
        """The architecture in a few words."""
        heads = f"{self.num_attention_heads} heads"
        if self.num_key_value_heads != self.num_attention_heads:
            heads += f" ({self.num_key_value_heads} of keys and values)"
        return f"{self.feed_forward()}, {self.num_hidden_layers} layers, width {self.hidden_size}, {heads}"

    def feed_forward(self) -> str:
        return "dense"

    def set_special_ids(self, mask: int, eos: int, pad: int, eot: int | None) -> None:
        """Set the special ids, some of which the published files lack, from those of a tokenizer."""
        for name, value in ("mask", mask), ("eos", eos), ("pad", pad), ("eot", eot):
            setattr(self, f"{name}_token_id", value)

    @property
    def denoiser_spec(self: Any) -> DenoiserSpec:
        """The `DenoiserSpec` of the model. `attribute_map` translates names of sizes that differ between families."""
        ids = {f"{name}_id": getattr(self, f"{name}_token_id") for name in ("mask", "eos", "pad", "eot")}
        sizes = {"context": self.max_sequence_length, "vocabulary": self.embedding_size}
        return DenoiserSpec(**ids, **sizes, kv_cache=True, auxiliary_losses=self.auxiliary_losses())
