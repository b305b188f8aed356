"""Preference losses, and the bias that the noise of an estimated score adds to them."""
