"""`Parametrization.step` on any batch of a sharded model: on two processes, the same."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from any_batch_cases import Net, backward, batch, build, by_twin
from test_any_batch import assert_exact
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from maxp import Parametrization
from scripts.torture.ranks import run_ranks


def main() -> None:
    """One of the processes: writes what it measured to FOLDER/rankN.json."""
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    cases = {}
    for resample_w0 in (False, True):
        for from_training in (False, True):
            model, p = sharded(resample_w0, from_training)
            cases[f"{resample_w0} {from_training}"] = case(model, p, rank, from_training)
    (folder / f"rank{rank}.json").write_text(json.dumps(cases))
    dist.destroy_process_group()


def sharded(resample_w0: bool, from_training: bool) -> tuple[Net, Parametrization]:
    torch.manual_seed(0)
    model = Net().double()
    model.drop.p = 0.0
    model.statistics.eval()
    mesh = init_device_mesh("cpu", (2,))
    for part in (model.first, model.norm):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    p = Parametrization(
        model,
        lr_prefactor=0.05,
        seed=3,
        sample_size=100,
        resample_w0=resample_w0,
        use_training_activations=from_training,
    )
    return model, p


def case(model: Net, p: Parametrization, rank: int, from_training: bool) -> dict[str, Any]:
    p.capture_initial(None)
    optimizer = torch.optim.Adam(p.param_groups)
    for step in (1, 2):
        for part in range(2):  # gradients are accumulated, over batches of each process
            backward(model, batch(100 * step + 10 * part + rank))
        optimizer.step()
        optimizer.zero_grad()
        if not from_training:
            with torch.no_grad():  # a validation pass, which leaves the last weights gathered
                model(batch(0))
        p.step(batch(100 * step + 10 + rank), optimizer)
        if step == 2:
            measured = p.measured
    whole = {n: v.full_tensor().tolist() for n, v in model.named_parameters()}
    local = [v.to_local().clone() for v in model.parameters()]
    # Each process fails in the pass; then training goes on with the current weights.
    fails = model.second.register_forward_pre_hook(lambda *_: 1 / 0)
    if not from_training:
        with pytest.raises(ZeroDivisionError):
            p.measure(batch(5))
    fails.remove()
    after = [v.to_local() for v in model.parameters()]
    same = all(torch.equal(a, b) for a, b in zip(local, after, strict=True))
    with torch.no_grad():
        output = model(batch(4)).tolist()
    return {"measured": measured, "whole": whole, "same": same, "output": output}


@pytest.mark.slow
def test_two_processes_measure_what_a_model_that_kept_its_initial_weights_does(
    tmp_path: Path,
) -> None:
    done = run_ranks("test_any_batch_shards", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    cases = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert len(cases[0]) == 4
    for name, first in cases[0].items():
        other = cases[1][name]
        assert first["same"]
        assert other["same"]
        twin, _ = build()
        model = copy.deepcopy(twin)
        model.load_state_dict(
            {n: torch.tensor(v).double() for n, v in first["whole"].items()}, strict=False
        )
        for net in (model, twin):
            net.eval()
        assert torch.allclose(model(batch(4)), torch.tensor(first["output"]).double(), atol=1e-12)
        # The first process's batch counts.
        if name.endswith("False"):
            assert_exact(first["measured"], by_twin(model, twin, batch(210)))
        assert first["measured"] == other["measured"]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
