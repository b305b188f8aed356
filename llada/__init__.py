"""LLaDA in native code: model, forward process, likelihood, sampler, pretraining and SFT.

Importing the package registers the published `model_type` "llada" with the transformers Auto classes, so
`AutoModel.from_pretrained("GSAI-ML/LLaDA-8B-Instruct")` gives `LLaDAModelLM` without remote code.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llada.config import LLaDAConfig
from llada.model import LLaDAModelLM
from llada.sampler import generate

AutoConfig.register("llada", LLaDAConfig)
for auto_class in (AutoModel, AutoModelForCausalLM):
    auto_class.register(LLaDAConfig, LLaDAModelLM)

__all__ = ["LLaDAConfig", "LLaDAModelLM", "generate"]
