"""LLaMA-3 at every scale: sizes, torchtitan's model with its layers marked, and what it costs."""
