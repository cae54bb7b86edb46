"""Make the runs, a few at a time, and keep one line per run in a CSV file.

Each run is ``python -m train`` with the arguments of `arguments`. The processes are forked from one
that has imported the trainer, which saves most of a run's start.
"""

import json
import math
import multiprocessing
import os
import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.transfer.plan import STEPS, Run
from train.run.files import write_whole
from train.run.folder import CONFIG, FINISHED, load_run
from train.run.identity import run_name

TERMS = ("align_z0_dW", "align_dZ_w0", "align_dZ_dW")
TYPES = ("embedding", "hidden", "readout", "scores")
"""Layer types; scores are QK^T, which has no parameters."""

PARTS = 5
"""Equal parts of the steps after the warm-up, over which alignment is averaged."""

_PRELOADED = [
    *("train.__main__", "torch._dynamo", "torch.utils.tensorboard", "tensorboard.plugins.hparams"),
]


def arguments(run: Run, folder: Path) -> list[str]:
    """The arguments of ``python -m train``."""
    return [
        *("--scale", run.scale, "--method", run.method, "--lr", f"{run.lr:g}"),
        *("--seed", str(run.seed), "--steps", str(STEPS), *shlex.split(run.flags)),
        *("--output-dir", str(folder)),
    ]


def folder_name(run: Run) -> str:
    """The name of a run's folder: what `run_name` gives, then part, arm and the factors.

    Factors by site are left out, since the arm decides them.
    """
    flags = [word.split("=") for word in shlex.split(run.flags) if "lr_multipliers" in word]
    factors = "_".join(value for _, *values in flags for value in values)
    name = run_name(run.scale, run.method, run.lr, run.seed)
    return f"{name}_{run.part}_{run.arm.replace('/', '-')}_{factors}"


def make(
    next_run: Callable[[], Run | None],
    done: Callable[[Run, Path], None],
    runs: Path,
    processes: int,
) -> None:
    """Make the runs that ``next_run`` names, until it names none and all have ended.

    Args:
        next_run: the run to start next; None while nothing can be started.
        done: called for each run that has ended, with its folder.

    Raises:
        RuntimeError: a run ended without a result.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the process that forks
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    active: dict[Any, tuple[Run, Path, ForkServerProcess]] = {}
    while True:
        while len(active) < processes and (run := next_run()) is not None:
            folder = runs / folder_name(run)
            if _finished(folder):
                done(run, folder)
                continue
            process = context.Process(target=_train, args=(arguments(run, folder), folder))
            process.start()
            active[process.sentinel] = run, folder, process
        if not active:
            return
        for sentinel in wait(list(active)):
            run, folder, process = active.pop(sentinel)
            process.join()
            if not _finished(folder):
                raise RuntimeError(f"{folder}: ended without a result; see {_log(folder)}")
            done(run, folder)


def _finished(folder: Path) -> bool:
    known = (folder / CONFIG).exists()
    return known and load_run(folder, metrics=False).status.get("state") in FINISHED


def _log(folder: Path) -> Path:
    return folder.with_suffix(folder.suffix + ".log")


def _train(words: list[str], folder: Path) -> None:
    """Train in this process; its output goes to a file beside the folder."""
    from train.__main__ import main

    _log(folder).parent.mkdir(parents=True, exist_ok=True)
    log = os.open(_log(folder), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["python -m train", *words]
    sys.exit(main())


def row(run: Run, folder: Path) -> dict[str, Any]:
    """The line of a run that has ended: losses, and alignment and c by layer type.

    A diverged run has infinite losses.
    """
    loaded = load_run(folder)
    summary = json.loads((folder / "summary.json").read_text())
    diverged = summary["state"] == "diverged"
    losses = {name: summary[name] for name in ("validation", "train")}
    if diverged:
        losses = dict.fromkeys(losses, math.inf)
    return {
        **run._asdict(),
        **{name: f"{value:.5f}" for name, value in losses.items()},
        **by_type(loaded.metrics, loaded.config["steps"]),
        "commit": (loaded.config.get("git_commit") or "")[:10],
    }


def by_type(metrics: Iterable[Mapping[str, Any]], steps: int) -> dict[str, str]:
    """Measured alignment of each layer type and term in each fifth of the steps that measure.

    Values are means over sites and measurements, separated by spaces, and "-" where there is none.
    c is the mean over the last fifth.
    """
    values: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    first = None
    for record in metrics:
        sites = record.get("sites", {})
        step = record["step"]
        if first is None and any(TERMS[0] in site for site in sites.values()):
            first = step
        if first is None:
            continue
        part = min(PARTS - 1, PARTS * (step - first) // max(1, steps - first + 1))
        for name, site in sites.items():
            for term in (*TERMS, "c"):
                value = site.get(term)
                if value is not None and math.isfinite(value):
                    values[layer_type(name), term][part].append(value)
    cells = {}
    for of in TYPES:
        for term in TERMS:
            parts = values[of, term]
            texts = [f"{statistics.fmean(parts[i]):.4f}" if parts[i] else "-" for i in range(PARTS)]
            cells[f"{of}_{term}"] = " ".join(texts) if any(parts.values()) else ""
        last = values[of, "c"][PARTS - 1]
        cells[f"{of}_c"] = f"{statistics.fmean(last):.4f}" if last else ""
    return cells


def layer_type(site: str) -> str:
    """The layer type of a site of LLaMA-3."""
    if site.endswith("inner_attention"):
        return "scores"
    return {"tok_embeddings": "embedding", "lm_head": "readout"}.get(site, "hidden")


def read(file: Path) -> pd.DataFrame:
    """The lines of the file, with losses as numbers; no line if it does not exist."""
    text = ["part", "arm", "scale", "method", "flags", "commit"]
    if not file.exists():
        return pd.DataFrame(columns=[*Run._fields, "validation", "train"])
    frame = pd.read_csv(file, keep_default_na=False, dtype=dict.fromkeys(text, str))
    return frame.astype({"lr": float, "seed": int, "validation": float, "train": float})


def losses(frame: pd.DataFrame) -> dict[Run, float]:
    """Validation loss by run."""
    return {
        Run(*(record[name] for name in Run._fields)): record["validation"]
        for record in frame.to_dict("records")
    }


def append(file: Path, line: Mapping[str, Any]) -> None:
    """Write the file with one more line, whole or not at all."""
    frame = pd.concat([_as_text(file), pd.DataFrame([line]).astype(str)])
    write_whole(file, frame.to_csv(index=False, lineterminator="\n"))


def _as_text(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, keep_default_na=False, dtype=str) if file.exists() else pd.DataFrame()
