"""The model families, and how the transformers Auto classes come to know them.

A family is one file of this folder, which ends with a call of `register`. Two published layouts say `model_type:
"llada"`: which family a `config.json` is of, its fields say (`config_class`).
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from typing import Any

MODEL_TYPE = "llada"
AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def config_class(fields: dict) -> Any:
    """The configuration class of a `config.json`, or of the fields of a new model: with `num_experts`, of experts."""
    from llada.models.llada import LLaDAConfig
    from llada.models.llada_moe import LLaDAMoEConfig

    return LLaDAMoEConfig if "num_experts" in fields else LLaDAConfig


def register(config: type, model: type) -> None:
    """Make AutoModel and AutoModelForCausalLM build `model` for a config of class `config`."""
    from transformers import AutoModel, AutoModelForCausalLM

    for auto_class in (AutoModel, AutoModelForCausalLM):
        auto_class.register(config, model, exist_ok=True)


def register_configs() -> None:
    """Make AutoConfig read our `config.json` files. Picking the class imports its family, which registers its model."""
    from transformers import AutoConfig, PreTrainedConfig

    class FamilyMember(PreTrainedConfig):
        model_type = MODEL_TYPE

        @classmethod
        def from_dict(cls, config_dict, **kwargs):
            return config_class(config_dict).from_dict(config_dict, **kwargs)

    AutoConfig.register(MODEL_TYPE, FamilyMember, exist_ok=True)


class RegisterAfterImport(MetaPathFinder):
    """Calls `register_configs` once transformers' AutoConfig has been imported.

    That import takes seconds, which `import llada` must not cost where nobody uses a model, as for `--help`.
    """

    def find_spec(self, fullname, path, target=None):
        if fullname != AUTO_CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert isinstance(spec.loader, Loader)
        execute = spec.loader.exec_module

        def exec_module(module) -> None:
            execute(module)
            register_configs()

        spec.loader.exec_module = exec_module
        return spec


def register_when_imported() -> None:
    """Make the Auto classes know the families: now if they are loaded, else as soon as they are."""
    if AUTO_CONFIG in sys.modules:
        register_configs()
    else:
        sys.meta_path.insert(0, RegisterAfterImport())
