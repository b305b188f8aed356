"""The recipes of `llada`, each a module with `main(argv)`: `llada sft`, `python recipes/sft.py`."""
