"""Modules that all model families share."""
