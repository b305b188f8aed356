"""What commands and recipes share: options, loading, the run around a trainer."""
