"""The preference trainer."""
