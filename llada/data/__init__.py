"""Loading, tokenization and collation: from rows of text to batches of token ids."""
