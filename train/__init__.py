"""The pre-training harness: LLaMA-3 on torchtitan, with the lr of every layer set by ``maxp``."""
