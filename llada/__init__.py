"""LLaDA in native code: model, forward process, likelihood, sampler, pretraining and SFT.

Importing the package registers the published `model_type` "llada" with the transformers Auto classes, so
`AutoModel.from_pretrained("GSAI-ML/LLaDA-8B-Instruct")` gives `LLaDAModelLM`, and a
LLaDA-MoE `LLaDAMoEModelLM`, without remote code.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llada.config import LLaDAConfig, LLaDAMoEConfig
from llada.model import LLaDAModelLM
from llada.moe import LLaDAMoEModelLM
from llada.sampler import generate, infill
from llada.sampler_settings import SamplerSettings

AutoConfig.register("llada", LLaDAConfig)  # and LLaDAMoEConfig, which its `from_dict` tells apart
for auto_class in (AutoModel, AutoModelForCausalLM):
    auto_class.register(LLaDAConfig, LLaDAModelLM)
    auto_class.register(LLaDAMoEConfig, LLaDAMoEModelLM)

__all__ = [
    "LLaDAConfig",
    "LLaDAMoEConfig",
    "LLaDAMoEModelLM",
    "LLaDAModelLM",
    "SamplerSettings",
    "generate",
    "infill",
]
