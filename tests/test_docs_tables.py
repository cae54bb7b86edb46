"""The costs and sizes in the documents are those that the code computes, and recipes agree."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from harness import run, tiny

from slurm.cluster import load_cluster
from slurm.estimate import ScaleEstimate, estimate
from slurm.sweep import expand, load_sweep
from train.config import Flags, make_config
from train.method.methods import METHODS
from train.model import costs
from train.model.costs import Probe
from train.model.scales import SCALES, compute_steps

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = ("s1", "s2", "s3", "s4", "s5")
HEAD = (
    "sweep", "non-embedding parameters", "tokens per run", "text on disk", "steps", "GPUs per run",
    "hours per run", "GPU-hours per run", "jobs", "GPU-hours",
)  # fmt: skip


def prices(name: str) -> list[ScaleEstimate]:
    """The costs of a sweep of configs/sweeps on the example's H100s, before any run is measured."""
    sweep = load_sweep(ROOT / f"configs/sweeps/{name}.toml")
    return estimate(sweep, expand(sweep), load_cluster("example_h100"), {})


def priced(name: str) -> ScaleEstimate:
    """The cost of a sweep of one scale."""
    (cost,) = prices(name)
    return cost


def hours(value: float | None) -> str:
    """Three digits, with commas from 1,000 on."""
    assert value is not None
    short = f"{value:.3g}"
    return f"{float(short):,.0f}" if "e" in short else short


def count(value: int) -> str:
    return f"{value / 1e9:.1f}B" if value >= 1e9 else f"{value / 1e6:.0f}M"


def row(name: str) -> list[str]:
    scale, cost = SCALES[name], priced(name)
    steps = compute_steps(scale)
    tokens = steps * scale.global_batch_size * scale.seq_len
    assert cost.hours is not None
    return [
        f"`{name}`", count(scale.non_embedding_params), count(tokens),
        f"{4 * tokens / 1e9:.2g} GB" if tokens < 2e10 else f"{4 * tokens / 1e9:.0f} GB",
        f"{steps:,}", str(cost.devices), f"{cost.hours:.2g}", hours(cost.hours * cost.devices),
        str(cost.runs), hours(cost.device_hours),
    ]  # fmt: skip


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def shown_table(name: str) -> str:
    """The table of this name on the page on sweeps."""
    text = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    shown = re.search(rf"<!-- table: {name} -->\n(.*?)\n*<!-- / -->", text, flags=re.DOTALL)
    assert shown is not None
    return shown[1].strip()


def test_the_page_on_sweeps_has_the_costs_that_a_dry_run_prints() -> None:
    assert shown_table("costs") == table(HEAD, [row(name) for name in SWEEPS])


def test_the_page_on_sweeps_has_the_price_of_the_ladder() -> None:
    costs = prices("ladder")
    total = sum(cost.device_hours or math.nan for cost in costs)
    words = " ".join((ROOT / "docs/sweeps.md").read_text(encoding="utf-8").split())
    assert f"{sum(cost.runs for cost in costs)} jobs, {hours(total)} GPU-hours" in words


def checkpoint_bytes(name: str, method: str) -> int:
    """Bytes of a checkpoint: weights, AdamW's moments and, where alignment is measured, W0."""
    held = costs.memory(SCALES[name])
    return held.parameters + held.optimizer + (held.w0 if METHODS[method].follows else 0)


def size(value: float) -> str:
    unit, end = (1e12, "TB") if value >= 1e12 else (1e9, "GB")
    return f"{value / unit:.3g} {end}"


def kept(steps: int, interval: int, latest: int) -> int:
    """Checkpoints of a finished run; the last one deletes no other."""
    return min(math.ceil(steps / interval), latest + 1)


def checkpoint_row(name: str) -> list[str]:
    config = make_config(Flags(name)).checkpoint
    runs = expand(load_sweep(ROOT / f"configs/sweeps/{name}.toml"))
    steps = runs[0].steps
    usual, fewest = (kept(steps, config.interval, k) for k in (config.keep_latest_k, 2))
    once = sum(checkpoint_bytes(name, run.method) for run in runs)
    return [
        f"`{name}`", count(sum(costs.parameters(SCALES[name]))),
        *(size(checkpoint_bytes(name, method)) for method in ("maxP", "mup-full")),
        str(usual), size(usual * once), size(fewest * once),
    ]  # fmt: skip


def test_the_page_on_sweeps_has_the_sizes_of_checkpoints() -> None:
    head = (
        "sweep", "all parameters", "a checkpoint of maxP", "of other methods", "kept per run",
        "all runs of the sweep", "with `keep_latest_k=2`",
    )  # fmt: skip
    assert shown_table("checkpoints") == table(head, [checkpoint_row(name) for name in SWEEPS])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["maxP", "mup-full"])
def test_a_checkpoint_has_the_size_that_is_computed(tmp_path: Path, method: str) -> None:
    done = run(tiny(tmp_path, method, "--steps", "4", "--checkpoint.enable"))
    assert done.code == 0
    (folder,) = (tmp_path / "checkpoint").iterdir()
    actual = sum(file.stat().st_size for file in folder.iterdir())
    # The tokenizer's and the data's state are the same size at every scale.
    assert 0 < actual - checkpoint_bytes("debug", method) < 1e6


@pytest.mark.parametrize("name", SWEEPS)
def test_the_readme_has_the_gpu_hours_of_each_sweep(name: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^\| `{name}` \|.*$", text, flags=re.MULTILINE)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == count(SCALES[name].non_embedding_params)
    assert cells[-1] == f"{hours(priced(name).device_hours)} ({priced(name).runs} jobs)"


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 7, 8])
def test_a_finished_run_has_as_many_checkpoints_as_is_computed(tmp_path: Path, steps: int) -> None:
    flags = ("--steps", str(steps), "--checkpoint.enable", "--checkpoint.interval", "2")
    done = run(tiny(tmp_path, "mup-full", *flags, "--checkpoint.keep_latest_k", "2"))
    assert done.code == 0
    assert len([*(tmp_path / "checkpoint").iterdir()]) == kept(steps, interval=2, latest=2)


def predicted(name: str) -> list[str]:
    """What measuring keeps and computes, by `train.model.costs`."""
    scale, fresh, fixed = SCALES[name], Probe(fresh=True), Probe(fresh=False)
    moving, still = costs.memory(scale, probe=fresh), costs.memory(scale, probe=fixed)
    flops = [costs.measurement_flops(scale, p) / costs.step_flops(scale) for p in (fresh, fixed)]
    mib = [f"{size / 2**20:.2f}" for size in (moving.model, moving.w0, still.w0, still.z0)]
    shares = [of.share(resample_w0=again) for of, again in
              ((moving, False), (still, False), (still, True))]  # fmt: skip
    parts = [f"{part:.2%}" for part in (*shares, *flops)]
    return [name, *mib[:2], parts[0], *mib[2:], *parts[1:]]


def test_the_page_on_measuring_has_the_costs_that_are_computed() -> None:
    text = (ROOT / "docs/measuring.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| ((?:debug|cpu256|s\d) \| \d.*) \|$", text, re.MULTILINE)
    names = ("debug", "cpu256", *SWEEPS)
    assert [line.split(" | ") for line in shown] == [predicted(name) for name in names]


def test_both_recipes_of_the_image_install_the_same() -> None:
    installs = []
    for recipe in ("Dockerfile", "maxp.def"):
        text = (ROOT / "configs/clusters" / recipe).read_text(encoding="utf-8")
        words = text.replace("\\\n", "").replace("&&", "\n").splitlines()
        lines = (line.strip().removeprefix("RUN ").strip() for line in words)
        installs.append([line for line in lines if line.startswith(("apt-get", "pip "))])
    assert installs[0] == installs[1] != []
