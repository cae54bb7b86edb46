"""The recipes for several processes run on two ranks; test_docs.py runs the others."""

import json

import pytest

from scripts.torture.ranks import run_ranks


@pytest.mark.parametrize("heading", ["DistributedDataParallel", "FSDP2"])
def test_a_recipe_for_ranks_gives_both_the_same_exponents(heading: str) -> None:
    done = run_ranks("recipe_worker", heading)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(x) for x in done.stdout.splitlines() if x.startswith('{"c"'))
    assert first == second
    assert first["sites"] == 16
    assert first["c"]["model.layers.0.mlp.up_proj"] not in (0.5, 1.0)  # measured
