"""For each field of each configuration: values that are accepted, and values that end in an error which names it."""

import math

NAN, INF = math.nan, math.inf
NUMBERS = [NAN, INF, -INF]
OBJECTS = ["1", True, [1], {}]  # no number
TEXTS = [1, True, ["a"], {}]  # no text


def natural(least: int, *good, none: bool = False) -> tuple[list, list]:
    """Integers from `least` on."""
    bad = [least - 1, -3, 1.5, float(least), *NUMBERS, *OBJECTS]
    return [least, 10**6, *good, *[None] * none], bad + [None] * (not none)


def real(good: list, bad: list, none: bool = False) -> tuple[list, list]:
    return good + [None] * none, bad + NUMBERS + OBJECTS + [None] * (not none)


def flag(*good, none: bool = False) -> tuple[list, list]:
    """True or False; only `good` of them, where the other one needs a device or is refused."""
    return [*(good or (True, False)), *[None] * none], ["false", "yes", 2, -1, NAN, [], *[None] * (not none)]


def text(*good, none: bool = False) -> tuple[list, list]:
    return [*good, *[None] * none], TEXTS + [None] * (not none)


def name(*good, none: bool = False) -> tuple[list, list]:
    """One of the names that are known."""
    return [*good, *[None] * none], ["unknown", "", *TEXTS, *[None] * (not none)]


def steps(none: bool = False, zero: bool = True) -> tuple[list, list]:
    return real([0.5, 7, 7.0, *[0] * zero], [-1, -0.1, 1.5], none)


positive = real([1e-6, 1, 5.5], [0, 0.0, -1])
at_least_zero = real([0, 0.0, 2, 1e-4], [-1, -1e-9])
share = real([0, 0.0, 0.5, 1], [-0.1, 1.1])
mapping = ([{}, None, "{}"], ["{", "[1]", "null?", 3, [1], True])
path = (["a", None], ["", 1, True, ["a"]])

DIFFUSION = {
    "max_length": natural(1, none=True),
    "eos_tail": (["batch", "0", "3", 2], ["-1", -1, "1.5", 1.5, NAN, "", "all", True, None, [1], "²"]),
    "drop_overlong": flag(),
    "drop_invalid": flag(),
    "allow_special_tokens": flag(),
    "dataset_num_proc": natural(1, none=True),
    "model_init_kwargs": mapping,
    "router_aux_loss_coef": real([0, 0.0, 0.01], [-0.1], none=True),
    "pad_to_multiple_of": (["auto", None, 8, "8"], [0, -1, 1.5, NAN, True, "all", "", [8], "²"]),
    "activation_offloading": flag(False),
    "trust_remote_code": flag(False),
    "truncation_mode": name("keep_start"),
    "padding_free": flag(False),
    "pad_token": ([None], ["a", 1, NAN, True]),
}
SFT = DIFFUSION | {
    "masks": name("bernoulli", "exact_count"),
    "random_length_probability": share,
    "completion_only_loss": flag(none=True),
    "assistant_only_loss": flag(none=True),
    "packing": flag(none=True),
    "packing_strategy": name("bfd", "bfd_split", "wrapped", none=True),
    "eval_packing": flag(none=True),
    "shuffle_dataset": flag(),
    "dataset_text_field": (["text"], ["", *TEXTS, None]),
    "dataset_kwargs": (mapping[0] + [{"skip_prepare_dataset": True}], mapping[1] + [{"skip": True}]),
    "chat_template_path": path,
    "eos_token": path,
    "loss_type": name("nll", "chunked_nll"),
    "eval_draws": natural(1),
    "decay_steps": steps(),
}
VRPO = DIFFUSION | {
    "eos_tail": (DIFFUSION["eos_tail"][0][1:], DIFFUSION["eos_tail"][1] + ["batch"]),
    "beta": positive,
    "loss_type": (["sigmoid", ["hinge"], ["sigmoid", "sft"]], [[], "dpo", "", ["sigmoid", "dpo"], [1], 1, NAN, None]),
    "loss_weights": ([None, [1, 0.5], [0.0, 1]], [[], [NAN, 1], [INF, 1], ["1", 1], [True, 1], [1.0], [0, 0], 1, "1"]),
    "label_smoothing": real([0, 0.0, 0.49], [-0.1, 0.5]),
    "f_divergence_type": name("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    "f_alpha_divergence_coef": real([-1, 0.5, 3], []),
    "discopop_tau": positive,
    "use_weighting": flag(),
    "estimator": name("vrpo", "loo_complementary", "mirror"),
    "n_t": natural(1, none=True),
    "n_y": natural(1, none=True),
    "estimator_options": (
        mapping[0] + [{"levels": "mirrored"}, '{"count_tilt": 0.1}'],
        mapping[1]
        + [{"n_t": 2}, {"levels": "even"}, {"levels": 1}, {"count_tilt": "0.1"}, {"count_tilt": NAN}, {"masks": []}]
        + [{"shared_masks": "no"}, {"complementary": 1}, {"baseline_prior": INF}, {"nope": 1}],
    ),
    "eval_draws": natural(1),
    "variance_steps": natural(0),
    "noise_split_steps": natural(0),
    "allow_identical": flag(),
    "ld_alpha": real([0, 0.5, 1], [-0.1, 1.1], none=True),
    "kept_draws": natural(1, none=True),
    "unit_gradients": flag(none=True),
    "draws_per_forward": natural(1, none=True),
    "precompute_ref_log_probs": flag(),
    "precompute_ref_batch_size": natural(1, none=True),
    "ref_log_probs_dir": ([None], path[1]),  # a name needs precompute_ref_log_probs
    "sync_ref_model": flag(),
    "ref_model_mixup_alpha": share,
    "ref_model_sync_steps": natural(1),
    "disable_dropout": flag(True),
}
# Of `TrainingArguments`; those that are True or False have their rows made by `flag`.
INHERITED = {
    "per_device_train_batch_size": natural(1),
    "per_device_eval_batch_size": natural(1),
    "gradient_accumulation_steps": natural(1),
    "num_train_epochs": at_least_zero,
    "max_steps": natural(-1, 0),
    "learning_rate": at_least_zero,
    "warmup_steps": steps(),
    "weight_decay": at_least_zero,
    "adam_beta1": real([0, 0.9], [-0.1, 1]),
    "adam_beta2": real([0, 0.999], [-0.1, 1.0]),
    "adam_epsilon": at_least_zero,
    "max_grad_norm": real([0, 1.0], [-1], none=True),
    "logging_steps": steps(zero=False),
    "eval_steps": steps(none=True),
    "save_steps": steps(zero=False),
    "eval_delay": at_least_zero,
    "eval_accumulation_steps": natural(1, none=True),
    "save_total_limit": natural(0, none=True),
    "torch_empty_cache_steps": natural(1, none=True),
    "seed": ([0, 2**32 - 1], [*natural(0)[1], 2**32]),
    "data_seed": ([0, 2**63 - 1, None], [*natural(0, none=True)[1], 2**63]),
    "dataloader_num_workers": natural(0),
    "dataloader_prefetch_factor": ([None], natural(1, none=True)[1]),
    "ddp_bucket_cap_mb": natural(1, none=True),
    "ddp_timeout": ([1800], natural(1)[1]),
    "lr_scheduler_type": name("linear", "cosine"),
    "optim": name("adamw_torch", "sgd"),
    "logging_strategy": name("no", "steps", "epoch"),
    "eval_strategy": name("no", "epoch"),
    "save_strategy": name("no", "steps", "epoch", "best"),
}
RECIPE = {
    "dataset_name": text("a", none=True),
    "dataset_config": text("a", none=True),
    "dataset_train_split": text("train"),
    "dataset_test_split": text("test"),
    "dataset_streaming": flag(),
    "ignore_bias_buffers": flag(),
    "eval_dataset_name": path,
    "eval_fraction": real([0, 0.0, 0.99], [-0.1, 1, 1.5]),
    "tokenizer": path,
    "architecture": mapping,
    "eval_tasks": ([["a"], ["a", "b"]], [[], [1], "", 3]),
    "eval_tasks_args": mapping,
    "eval_tasks_limit": natural(1, none=True),
    "sample_prompts": natural(0),
    "expected_processes": natural(1, none=True),
    "resume": flag(),
    "overwrite": flag(),
}
ITERATE = RECIPE | {
    "prompts": (["a"], ["", None, *TEXTS]),
    "reward": path,
    "judge": path,
    "rounds": natural(1),
    "samples": natural(2),
    "batch_size": natural(1),
}
SAMPLER = {
    "steps": natural(1),
    "gen_length": natural(1),
    "block_length": natural(1),
    "temperature": at_least_zero,
    "cfg_scale": at_least_zero,
    "remasking": name("low_confidence", "top_probability", "random"),
    "threshold": real([1e-6, 0.9, 1], [0, 0.0, -1, 1.1], none=True),
    "factor": (positive[0] + [None], positive[1][:-1]),
    "cache": name("prefix", "dual", none=True),
    "refresh_every": natural(1, none=True),
    "grow": flag(),
    "logits_eos_inf": flag(),
    "confidence_eos_eot_inf": flag(),
    "stop_at_eos": flag(),
    "allow_mask": flag(),
}
SCORE = {
    "design": name("published", "systematic", "loo_complementary", "confidence"),
    "draws": ([16, 128], [17, *natural(1)[1]]),
    "group": ([1, 16, 128], [3, *natural(1)[1]]),
    "lead": (positive[0] + [None], positive[1][:-1]),
    "batch_size": natural(1),
    "seed": ([0, -3, 10**6], [1.5, "1", True, None, NAN]),
}
HARNESS = SCORE | {
    "pretrained": (["a"], ["", None, *TEXTS]),
    "preset": text("llada-1.5/gsm8k", none=True),
    "device": text("auto"),
    "dtype": name("auto", "float32", "bfloat16"),
    "max_length": natural(1, none=True),
    "coupled": flag(),
    "truncate": flag(),
}
VARIANCE = {
    "pairs": ([16, 32, None], [17, *natural(1, none=True)[1]]),
    "batch_size": natural(1),
    "repeats": natural(2),
    "budgets": ([[1], [2, 4]], [[], [0], [1, -1], [1.5], ["1"], [True], [NAN], 4, None]),
    "designs": ([["vrpo"], ["mirror", "espo"]], [[], ["best"], [1], "", 3, None]),
    "gradient": name("up", "head", "full", "none"),
    "loss_type": name("sigmoid", "hinge"),
    "beta": positive,
    "label_smoothing": VRPO["label_smoothing"],
    "source_pairs": natural(0),
    "split_pairs": ([0, 3, 32], [1, 2, *natural(0)[1]]),
    "split_repeats": ([2, 8, None], [9, *natural(2, none=True)[1]]),
    "pair_cost": at_least_zero,
    "epochs": natural(1),
    "noise_share": real([1e-6, 0.25, 0.99], [0, 0.0, 1, -0.1, 1.5]),
    "seed": ([-3, 0, 10**6], [1.5, *NUMBERS, *OBJECTS, None]),
}
TABLE = VARIANCE | {
    "allow_special_tokens": flag(),
    "model": (["a"], [None, *TEXTS]),
    "ref_model": (["a"], [None, *TEXTS]),
    "data": (["a"], [None, *TEXTS]),
    "max_length": natural(1, none=True),
    "output": (["a"], ["", None, *TEXTS]),
    "overwrite": flag(),
    "device": text("cpu"),
    "dtype": name("auto", "float32", "bfloat16"),
}
COMPLETIONS = {
    "model": (["a"], ["", None, *TEXTS]),
    "prompts": (["a"], ["", None, *TEXTS]),
    "output": (["a"], ["", None, *TEXTS]),
    "preset": text(none=True),
    "limit": natural(1, none=True),
    "batch_size": natural(1),
    "seed": ([0, 2**63 - 1], [-1, 2**63, 0.5, *NUMBERS, *OBJECTS, None]),
    "allow_special_tokens": flag(),
    "overwrite": flag(),
}
given = (["a"], ["", None, *TEXTS])
EVALUATION = {
    "suite": given,
    "model": given,
    "output": given,
    "tasks": ([["gsm8k"], None], ["gsm8k", 1, [1], [None], {}]),
    "limit": natural(1, none=True),
    "num_fewshot": natural(0, none=True),
    "draws": natural(1, none=True),
    "design": name("published", "systematic", "loo_complementary", "confidence"),
    "lead": real([0.5, 3], [0, -1], none=True),
    "truncate": flag(),
    "chat": flag(none=True),
    "dtype": name("auto", "float32", "bfloat16"),
    "device": (["auto", "cpu", "cuda", "cuda:1"], ["gpu", "cuda:", "", None, *TEXTS]),
    "batch_size": natural(1),
    "seed": ([0, 2**32 - 1], [-1, 2**32, 0.5, *NUMBERS, *OBJECTS, None]),
    "gsm8k_file": path,
    "gsm8k_fewshot_file": path,
    "poem_file": path,
    "confirm_run_unsafe_code": flag(),
    "overwrite": flag(),
}
WIN_RATE = {"completions": given, "baseline": given, "reward": path, "judge": path, "output": path}
LOSS = {
    "names": ([("sigmoid", "sft"), ["hinge", "ipo"]], [(), ("dpo", "sft"), (1, 2), "sigmoid", None]),
    "weights": ([(1.0, 0.5), [1, 2]], [(), (NAN, 1), (INF, 1), (0, 0), ("1", "2"), (True, True), (1.0,), 1, None]),
    **{
        option: VRPO[option]
        for option in ("beta", "label_smoothing", "f_divergence_type", "f_alpha_divergence_coef", "discopop_tau")
    },
    "use_weighting": flag(),
}
ROW_DESIGN = {"n_t": natural(1)}
DESIGN = ROW_DESIGN | {
    "n_y": natural(1),
    "shared_masks": flag(),
    "masks": name("exact_count", "bernoulli"),
    "levels": name("iid", "stratified", "mirrored"),
    "complementary": flag(),
    "count_tilt": share,
    "baseline_prior": real([0, 0.1, 1e6], [-0.1, 1.1e6]),
    "baseline_slope": real([0, 3.0, 100], [-0.1, 101]),
}
token = ([0, 39, None], [-1, 40, 10**9, 1.5, "1", True, NAN, [1]])
IDS = {f"{kind}_token_id": token for kind in ("mask", "bos", "eos", "pad", "eot")}
size = natural(1)[1]
theta = real([1, 10000, 5e5], [0, -1.0, 0.5])
DENSE = IDS | {
    "d_model": ([8, 32], [*size, 30]),
    "n_layers": ([1, 3], size),
    "n_heads": ([1, 4], [*size, 3]),
    "n_kv_heads": ([1, 4, None], [*size[:-1], 3]),
    "mlp_hidden_size": ([1, 48, None], size[:-1]),
    "mlp_ratio": ([1, 4], size),
    "vocab_size": ([40], [*size, 41]),
    "embedding_size": ([40, 64], [*size[:-1], 39]),
    "max_sequence_length": natural(1),
    "rope_theta": theta,
    "rms_norm_eps": positive,
    "include_qkv_bias": flag(),
    "weight_tying": flag(),
    "causal": flag(),
}
MOE = IDS | {
    "vocab_size": ([40, 64], size),
    "hidden_size": ([8, 32], [*size, 30]),
    "dense_intermediate_size": natural(1),
    "expert_intermediate_size": natural(1),
    "num_hidden_layers": ([1, 3], size),
    "num_attention_heads": ([1, 4], [*size, 3]),
    "num_key_value_heads": ([1, 4, None], [*size[:-1], 3]),
    "num_experts": ([2, 8], [*size, 1]),
    "num_experts_per_tok": ([1, 4], [*size, 5]),
    "moe_layer_freq": ([[1, 0], None], [[], [1], [1, 2], [1.0, 1.5], ["1", "0"], [True, False], 1]),
    "max_position_embeddings": natural(1),
    "rope_theta": theta,
    "rms_norm_eps": positive,
    "tie_word_embeddings": flag(),
    "causal": flag(),
    "router_aux_loss_coef": at_least_zero,
    "router_z_loss_coef": at_least_zero,
}
SPEC = {
    **{f"{kind}_id": token for kind in ("mask", "eos", "pad", "eot")},
    "context": natural(1),
    "vocabulary": ([40], size),
    "shifted": flag(),
    "attention": name("bidirectional", "block_causal", "causal"),
    "kv_cache": flag(),
    "auxiliary_losses": ([{}, {"a": 0.1}], [None, 1, "a", [1]]),
}
