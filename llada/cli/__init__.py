"""Code shared by commands and recipes: options, loading of models and data, and the run around a trainer."""

import os
import warnings

# Progress bars of all libraries appear after two seconds: those of short work would bury what a command says itself.
os.environ.setdefault("TQDM_DELAY", "2")

# What libraries tell each other: nobody who runs a command can act on it.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # transformers to peft
