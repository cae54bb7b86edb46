"""Configurations in torchtitan's form: ``--module configs.llama3 --config s1_maxP``."""
