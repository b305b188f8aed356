"""Filling masks: one loop, the rules of what a step commits, caches and guidance."""
