"""Registration of the model families with the transformers Auto classes and PEFT.

Each family is one file of this folder, which ends with a call of `register`. Both published families have the
`model_type` "llada"; `config_class` tells from the other fields of a `config.json` which family it belongs to.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from typing import Any

MODEL_TYPE = "llada"
AUTO_CONFIG = "transformers.models.auto.configuration_auto"
PEFT_TARGETS = "peft.utils.constants"


def config_class(fields: dict) -> Any:
    """The configuration class for the fields of a `config.json` or of a new model: `num_experts` means LLaDA-MoE."""
    from llada.models.llada import LLaDAConfig
    from llada.models.llada_moe import LLaDAMoEConfig

    return LLaDAMoEConfig if "num_experts" in fields else LLaDAConfig


def register(config: type, model: type) -> None:
    """Make AutoModel and AutoModelForCausalLM build `model` for a config of class `config`."""
    from transformers import AutoModel, AutoModelForCausalLM

    for auto_class in (AutoModel, AutoModelForCausalLM):
        auto_class.register(config, model, exist_ok=True)


def register_configs() -> None:
    """Make AutoConfig read our `config.json` files. `config_class` imports the families, which register models."""
    from transformers import AutoConfig, PreTrainedConfig

    class FamilyMember(PreTrainedConfig):
        model_type = MODEL_TYPE

        def __new__(cls, *args, **fields):
            return config_class(fields)(*args, **fields)

        @classmethod
        def from_dict(cls, config_dict, **kwargs):
            return config_class(config_dict).from_dict(config_dict, **kwargs)

    AutoConfig.register(MODEL_TYPE, FamilyMember, exist_ok=True)


def register_adapter_targets() -> None:
    """Tell PEFT which layers `LoraConfig()` adapts in these models; `wrap_with_adapters` adapts more of each block."""
    from peft.utils import constants

    constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault(
        MODEL_TYPE, ["q_proj", "k_proj", "v_proj", "attn_out", "o_proj"]
    )


class RegisterAfterImport(MetaPathFinder):
    """An import hook that calls `register` once `module` has been imported.

    The imports take seconds, so `import llada` must not trigger them where no model is used, as for `--help`.
    """

    def __init__(self, module: str, register: Callable[[], None]):
        self.module, self.register = module, register

    def find_spec(self, fullname, path, target=None):
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)  # for the next line, which would come back here
        spec = importlib.util.find_spec(fullname)
        sys.meta_path.insert(0, self)  # until the module has been executed: a spec may be asked for and not used
        assert spec is not None
        assert isinstance(spec.loader, Loader)
        execute = spec.loader.exec_module

        def exec_module(module) -> None:
            execute(module)
            sys.meta_path.remove(self)
            self.register()

        spec.loader.exec_module = exec_module
        return spec


def register_when_imported() -> None:
    """Register the families with transformers and PEFT: now where these are loaded, else as soon as they are."""
    for module, register_here in ((AUTO_CONFIG, register_configs), (PEFT_TARGETS, register_adapter_targets)):
        if module in sys.modules:
            register_here()
        else:
            sys.meta_path.insert(0, RegisterAfterImport(module, register_here))
