"""Code shared by commands and recipes: options, loading of models and data, and the run around a trainer."""
