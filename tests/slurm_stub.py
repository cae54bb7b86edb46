"""Stands in for ``python -m train`` where a test is about a sweep, not about training.

It writes a run's files as the trainer does, goes on from the step where it was stopped, and on USR2
ends with status 75. STUB_SECONDS is how long a step takes, STUB_FAIL a seed that fails. It stays in
its first step until STUB_MEET runs of the sweep have begun, and until the file STUB_GATE exists.
Each start adds a line to ``starts`` in the run's folder: its process and the parent of that, the
environment and when it began.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from train.run.folder import RunFolder, read_status

parser = argparse.ArgumentParser()
for flag in ("--scale", "--method"):
    parser.add_argument(flag)
parser.add_argument("--lr", type=float)
for flag in ("--seed", "--steps"):
    parser.add_argument(flag, type=int)
parser.add_argument("--output-dir", type=Path)
asked, _ = parser.parse_known_args()

asked_to_stop = False
gate = Path(os.environ.get("STUB_GATE", "/"))
meet = int(os.environ.get("STUB_MEET", "1"))


def note(*_: object) -> None:
    global asked_to_stop
    asked_to_stop = True


signal.signal(signal.SIGUSR2, note)
run = RunFolder(asked.output_dir)
config = {key: getattr(asked, key) for key in ("scale", "method", "lr", "seed", "steps")}
run.claim(config)
told = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
process = {"pid": os.getpid(), "parent": os.getppid()}
with (run.path / "starts").open("a") as starts:
    starts.write(json.dumps(process | {"began": time.time(), **told}) + "\n")
if str(asked.seed) == os.environ.get("STUB_FAIL"):
    run.set_status("failed", step=0, reason="out of memory")
    sys.exit("RuntimeError: out of memory, says the stub")
metrics = run.metrics()
begin = (read_status(run.path).get("step") or 0) + 1
metrics.rewind(begin - 1)
for step in range(begin, asked.steps + 1):
    run.set_status("running", step=step - 1)
    time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
    metrics.append(
        {"step": step, "loss": 5.0 - 0.1 * step, "tokens_per_second": 1000.0, "step_seconds": 2.0}
    )
    while not asked_to_stop and not (
        gate.exists() and len(list(run.path.parent.glob("*/starts"))) >= meet
    ):
        time.sleep(0.01)
    if asked_to_stop and step < asked.steps:
        run.set_status("preempted", step=step)
        sys.exit(75)
metrics.append({"step": asked.steps, "validation_loss": 4.0 + asked.lr})
run.set_status("completed", step=asked.steps)
