"""The recipes of `vrpo`, each a module with `main(argv)`: `vrpo align`, `python recipes/align.py`."""
