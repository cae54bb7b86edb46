"""Benchmarks, reported as ratios within one run: ``python -m scripts.bench.NAME``."""
