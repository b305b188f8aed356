"""The base class of all model configurations, and the check of their fields."""

from typing import Annotated, Any

from llada.checks import Range, check, check_fields, own_fields
from llada.denoiser import DenoiserSpec

RopeTheta = Annotated[float, Range(at_least=1)]  # below 1, frequencies would rise with the index of a dimension


def check_supported(fields: dict, supported: dict[str, tuple]) -> None:
    """Raise ValueError on the first field with an unsupported value; the message lists the supported ones."""
    for field, values in supported.items():
        if field in fields and fields[field] not in values:
            allowed = " or ".join(repr(value) for value in values)
            raise ValueError(f"config field {field}={fields[field]!r} is not supported: it must be {allowed}")


DTYPES = ("float32", "bfloat16", "float16", "float64")


def check_dtype(value: Any, name: str = "dtype") -> None:
    """Raise ValueError on a dtype that weights cannot have, or that is unknown; None and "auto" pass.

    Args:
        value: a dtype or its name. name: what it is called where it was given.
    """
    if value not in (None, "auto") and str(value).removeprefix("torch.") not in DTYPES:
        raise ValueError(f"{name}={value!r} is not supported: it must be {', '.join(DTYPES)} or 'auto'")


class FamilyConfig:
    """Mixin of the model configurations: describes a model to the rest of the package."""

    def check_declared(self: Any, base: type) -> None:
        """Compare each field with its declared type and range, but for those of the base class.

        Raises:
            ValueError: see `llada.checks.check`.
        """
        check_fields(self, own_fields(type(self), base), prefix="config field ")

    def check_ids(self: Any) -> None:
        """Compare the special ids with the rows of the embedding.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        inside = Annotated[int, Range(at_least=0, below=self.embedding_size)]
        for name in ("mask", "bos", "eos", "pad", "eot"):
            check(f"config field {name}_token_id", getattr(self, f"{name}_token_id"), inside | None)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """`PreTrainedConfig.from_dict`, through which a config.json is read.

        Raises:
            ValueError: a field names an unknown dtype, code of the hub, or weights in a file of its own.
        """
        for name in ("dtype", "torch_dtype"):
            check_dtype(config_dict.get(name), f"config field {name}")
            check_dtype(kwargs.get(name), name)
        for name in ("attn_implementation", "experts_implementation"):
            if "/" in str(config_dict.get(name)):
                raise ValueError(
                    f"config field {name}={config_dict[name]!r} names code of the hub, which a file cannot ask for: "
                    f"remove it, and pass {name} where the model is loaded"
                )
        check_supported(config_dict, {"transformers_weights": (None,)})
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def auxiliary_losses(self) -> dict[str, float]:
        """Names and weights of the losses that the model returns in training besides its log-probabilities."""
        return {}

    def describe(self: Any) -> str:
        """The architecture in a few words."""
        heads = f"{self.num_attention_heads} heads"
        if self.num_key_value_heads != self.num_attention_heads:
            heads += f" ({self.num_key_value_heads} of keys and values)"
        kind = "autoregressive, " if self.causal else ""
        return f"{kind}{self.feed_forward()}, {self.num_hidden_layers} layers, width {self.hidden_size}, {heads}"

    def feed_forward(self) -> str:
        return "dense"

    def set_special_ids(self, mask: int, eos: int, pad: int, eot: int | None) -> None:
        """Set the special ids, some of which the published files lack, from those of a tokenizer.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        for name, value in ("mask", mask), ("eos", eos), ("pad", pad), ("eot", eot):
            setattr(self, f"{name}_token_id", value)
        self.check_ids()

    @property
    def denoiser_spec(self: Any) -> DenoiserSpec:
        """The `DenoiserSpec` of the model. `attribute_map` translates names of sizes that differ between families."""
        ids = {f"{name}_id": getattr(self, f"{name}_token_id") for name in ("mask", "eos", "pad", "eot")}
        sizes = {"context": self.max_sequence_length, "vocabulary": self.embedding_size}
        return DenoiserSpec(
            **ids, **sizes, shifted=self.causal, attention="causal" if self.causal else "bidirectional", kv_cache=True,
            auxiliary_losses=self.auxiliary_losses(),
        )  # fmt: skip
