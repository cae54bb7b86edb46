"""The muP study: why one learning rate does not fit all widths, derived, measured and drawn.

``python -m scripts.study`` measures, writes ``docs/study/``, and the numbers in
``docs/tutorial.md``.
"""
