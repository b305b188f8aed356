"""Losses of a preference pair, and what noise does to them."""
