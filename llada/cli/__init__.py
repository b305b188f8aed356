"""Code shared by commands and recipes: options, loading of models and data, and the run around a trainer."""

import warnings

# What libraries tell each other: nobody who runs a command can act on it.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # transformers to peft
