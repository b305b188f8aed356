"""TRL's options that have no meaning here: accepted at the values that ask for nothing, refused otherwise.

A TRL user's script then runs unless it asks for something that this package does not do, and the error says why and
what to do instead. `tests/test_trl_options.py` compares the options with those of the installed TRL.
"""

from typing import Any

# For each option: the accepted values, and why another one is refused and what to do instead.
REFUSED: dict[str, tuple[tuple, str]] = {
    "trust_remote_code": ((False,), "the models of this package are native code and never need it. Leave it out"),
    "truncation_mode": (
        ("keep_start",),
        "rows are never truncated, because a response without its beginning or end is another response. Use max_length "
        "with drop_overlong, which leaves long rows out",
    ),
    "padding_free": (
        (False,),
        "every forward pass attends in both directions within a row, and batches are padded. Leave it out",
    ),
    "pad_token": ((None,), "set tokenizer.pad_token and pass the tokenizer as processing_class"),
    "use_liger_kernel": (
        (False,),
        "Liger has no kernels for these models; their head computes log-probabilities in chunks",
    ),
    "neftune_noise_alpha": (
        (None,),
        "the noise would differ between policy and reference. Leave it out",
    ),
    "label_smoothing_factor": ((0, 0.0), "the loss is a likelihood bound. For preferences, see label_smoothing"),
    "batch_eval_metrics": ((False,), "metrics are means over all evaluated rows. Leave it out"),
    "eval_do_concat_batches": ((True,), "metrics are means over all evaluated rows. Leave it out"),
}


def check_refused(args: Any, refused: dict[str, tuple[tuple, str]]) -> None:
    """Raise ValueError on the first option of `args` whose value `refused` does not accept."""
    for name, (accepted, reason) in refused.items():
        value = getattr(args, name, accepted[0])
        if value not in accepted:
            raise ValueError(f"{name}={value!r} is refused: {reason}")
