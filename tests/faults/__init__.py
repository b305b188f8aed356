"""Faults on purpose: kills, torn files, failing writes and signals in whole runs of the recipes, and what follows."""
