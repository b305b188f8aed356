"""LLaDA in native code: models, forward process, likelihood, sampler, pretraining and SFT.

Importing the package registers the published `model_type` "llada" with the transformers Auto classes, so
`AutoModel.from_pretrained("GSAI-ML/LLaDA-8B-Instruct")` gives a `LLaDAModelLM`, and a LLaDA-MoE checkpoint gives a
`LLaDAMoEModelLM`, without remote code. The names in `__all__` are imported when they are first used.
"""

from llada.lazy import lazy_exports
from llada.models.registry import register_when_imported

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "llada.data.encoding": ["encode_prompt"],
        "llada.data.loading": ["load_rows"],
        "llada.data.tokenizer": ["byte_tokenizer", "load_tokenizer", "render", "special_ids"],
        "llada.denoiser": ["NOT_SCORED", "Denoiser", "DenoiserSpec", "Request", "as_denoiser"],
        "llada.diffusion.causal": ["causal_log_likelihood"],
        "llada.diffusion.likelihood": ["elbo_draws", "exact_elbo", "log_likelihood"],
        "llada.diffusion.masking": ["MaskDraws", "draw_masks", "corrupt"],
        "llada.diffusion.random_streams": ["generator_for"],
        "llada.errors": ["DataError", "PairError", "RecipeError"],
        "llada.evaluation": ["VERIFIERS"],
        "llada.models.common.lora": ["wrap_with_adapters"],
        "llada.models.llada": ["LLaDAConfig", "LLaDAModelLM"],
        "llada.models.llada_moe": ["LLaDAMoEConfig", "LLaDAMoEModelLM"],
        "llada.record.callback": ["RunRecord"],
        "llada.sampling.block_cache": ["SamplerStats"],
        "llada.sampling.left_to_right": ["causal_generate"],
        "llada.sampling.loop": ["generate", "infill"],
        "llada.sampling.presets": ["preset"],
        "llada.sampling.settings": ["SamplerSettings"],
        "llada.sampling.text": ["answers"],
        "llada.training.sft": ["MaskedDiffusionConfig", "MaskedDiffusionTrainer"],
    },
)

register_when_imported()
