"""Tables, plots and reports of many runs, from the files that `train.run` writes.

``collect`` reads the runs, ``analysis`` and ``basin`` compute, ``formats``, ``plots`` and
``report`` write. Nothing here imports torch.
"""
