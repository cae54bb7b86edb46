"""Measures the time to read many runs, with and without their summaries, and to write their report.

python -m scripts.bench.results --runs 10000
python -m scripts.bench.results --runs 1000 --layers 16
"""

import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from train.results.collect import collect
from train.results.formats import render
from train.results.report import report
from train.run.summary import write_summary

METHODS = ("maxP", "mup-full", "mup-no", "maxP-frozen", "sp")
SCALES = ("s1", "s2", "s3", "s4", "s5")


@dataclass
class Options:
    """Create the folders of many finished runs, and time how long it takes to read them.

    For example: python -m scripts.bench.results --runs 1000
    """

    runs: int = 10_000
    """Number of runs, spread over 5 scales, 5 methods, 10 lrs and as many seeds as needed."""

    records: int = 300
    """Lines per metrics.jsonl."""

    layers: int = 0
    """Blocks of the model whose sites each line has values of; without any, the line is padded."""

    record_bytes: int = 300
    """Bytes of padding per line, instead of values per layer."""

    config_bytes: int = 12_000
    """Bytes per config.json; by default about those of a LLaMA-3 run."""

    at: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Create the runs below this folder, to measure its file system, instead of below /tmp."""


def make_run(folder: Path, number: int, options: Options) -> None:
    """Write the folder of a completed run."""
    lr = 1e-3 * 2 ** (number // 25 % 10)
    coordinates = {
        "scale": SCALES[number % 5],
        "method": METHODS[number // 5 % 5],
        "lr": lr,
        "seed": number // 250,
        "steps": options.records,
    }
    folder.mkdir()
    filler = {f"key{i}": "x" * 40 for i in range(options.config_bytes // 52)}
    (folder / "config.json").write_text(json.dumps({"config": {**coordinates, "filler": filler}}))
    loss = 3 + math.log10(lr / 0.02) ** 2 / 9 + number % 7 / 1000
    sites = _sites(options.layers, lr) or "x" * options.record_bytes
    lines = [
        json.dumps({"step": s, "loss": loss + 5 / s, "tokens_per_second": 1e5, "sites": sites})
        for s in range(1, options.records + 1)
    ]
    lines.append(json.dumps({"step": options.records, "validation_loss": loss}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    status = {"state": "completed", "step": options.records}
    (folder / "status.json").write_text(json.dumps(status))
    write_summary(folder, parameters=10**7 * (1 + number % 5))


def _sites(layers: int, lr: float) -> dict[str, dict[str, float]]:
    """What a step logs about each site of a LLaMA with this number of blocks; nothing without."""
    ends = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
    blocks = [f"layers.{layer}.{end}" for layer in range(layers) for end in ends]
    terms = {"align_z0_dW": 0.7123, "align_dZ_w0": 0.5012, "align_dZ_dW": 0.6543}
    names = ["tok_embeddings", *blocks, "lm_head"] if layers else []
    return {name: {"lr": lr, "c": 0.7123456789, **terms} for name in names}


def time_report(folder: Path) -> None:
    runs = collect(folder)
    start = time.perf_counter()
    page = report(runs, folder.name, folder)
    took = time.perf_counter() - start
    print(f"{'report':24}{len(runs)} runs in {took:.1f} s, {len(page.encode()) / 1e6:.1f} MB")


def seconds(label: str, folder: Path) -> None:
    start = time.perf_counter()
    runs = collect(folder)
    read = time.perf_counter() - start
    text = render(runs, "validation")
    rendered = time.perf_counter() - start - read
    lines = text.count("\n")
    print(f"{label:24}{len(runs)} runs read in {read:.2f} s, {lines} lines in {rendered:.2f} s")


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory(dir=options.at) as name:
        folder = Path(name)
        for number in tqdm(range(options.runs), desc="making runs", unit="run", disable=None):
            make_run(folder / f"run{number:05d}", number, options)
        seconds("first time", folder)
        seconds("second time", folder)
        time_report(folder)
        for file in folder.glob("*/summary.json"):
            file.unlink()
        seconds("without summaries", folder)


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m scripts.bench.results"))
