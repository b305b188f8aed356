"""Sampling designs of the preference score."""
