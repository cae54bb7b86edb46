"""Sweeps of runs: what to run (``sweep``), where (``cluster``), what it costs (``estimate``).

Depends on `train`; commands that only plan or show a sweep do not import torch.
"""
