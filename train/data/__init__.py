"""Texts as batches of tokens: embedded corpus, local files, hub datasets, prepared tokens."""
