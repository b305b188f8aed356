"""Sampling designs: how the masks behind a preference score are drawn and weighted."""
