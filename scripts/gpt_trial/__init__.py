"""Whether a learning rate that was tuned at a small width carries, for a plain GPT."""
