"""Sweeps of runs: what to run (``sweep``), where (``cluster``), what it costs (``estimate``).

Depends on `train` for names and sizes; planning imports no torch.
"""
