"""The transfer experiment of docs/results.md."""
