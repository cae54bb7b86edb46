"""Sweeps of tiny runs on the two-node Slurm, through the command line, and what became of them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from harness import ROOT, Run
from harness import run as run_here
from slurm_cluster import Cluster
from waiting import wait_until

from slurm import __main__ as slurm
from train.run.folder import RunFolderError, read_status

MAXP = "debug_maxP_lr1e-02_seed1"
STEPS = 40

# As harness.TINY, in a sweep's words; the batch is 4 sequences.
FLAGS = {
    "training.seq_len": 32,
    "training.global_batch_size": 4,
    "lr_scheduler.warmup_steps": 5,
    "validator.sequences": 8,
    "validator.freq": 1000,
    "metrics.log_freq": 1,
    "maxp.measure_from": 1,
    "maxp.solve_interval": 3,
    "maxp.probe_tokens": 32,
    "checkpoint.interval": 10,
}


@dataclass(frozen=True)
class Sweep:
    """A sweep in a folder of its own."""

    cluster: Cluster
    file: Path
    cluster_file: Path
    programs: Path | None = None
    """A folder that comes first on the PATH of commands."""

    @property
    def folder(self) -> Path:
        return self.file.parent / "runs" / self.file.stem

    def words(self, command: str, *arguments: str) -> list[str]:
        """The command line of ``python -m slurm`` for this sweep."""
        if command == "submit":
            cluster = ("--cluster", str(self.cluster_file))
            words = [str(self.file), *cluster, "--runs-dir", str(self.folder.parent)]
        else:
            # `resume` and `retry` know clusters by name alone.
            named = command in ("resume", "retry")
            cluster = ("--cluster", str(self.cluster_file)) if named else ()
            words = [str(self.folder), *cluster]
        return [command, *words, *arguments]

    @property
    def environment(self) -> dict[str, str]:
        variables = {**self.cluster.environment, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
        if self.programs is not None:
            variables["PATH"] = f"{self.programs}:{variables['PATH']}"
        return variables

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        """``python -m slurm COMMAND`` on this sweep, outside the repository's folder."""
        return subprocess.Popen(
            [sys.executable, "-m", "slurm", *self.words(command, *arguments)],
            cwd=self.file.parent,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def do(self, command: str, *arguments: str, code: int = 0) -> str:
        """The same to its end, in this process, which has imported torch already.

        Returns:
            What it printed; its errors where it is to fail.
        """
        printed, errors = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),
            chdir(self.file.parent),
            redirect_stdout(printed),
            redirect_stderr(errors),
        ):
            status = slurm.main(self.words(command, *arguments))
        assert status == code, errors.getvalue()
        return (errors if code else printed).getvalue()

    def states(self) -> dict[str, str]:
        lines = self.do("status", "--format", "json").splitlines()
        return {record["run"]: record["state"] for record in map(json.loads, lines)}

    def job(self, run: str = MAXP) -> str:
        return str(json.loads((self.folder / run / "job.json").read_text())["job_id"])

    def run(self, run: str = MAXP) -> Run:
        return Run(self.folder / run)

    def said(self, run: str = MAXP) -> str | None:
        """The state that the run itself has written down."""
        try:
            state = read_status(self.folder / run).get("state")
        except RunFolderError:
            return None
        return None if state is None else str(state)

    def step(self, run: str = MAXP) -> int:
        """The last whole record's, of a file that is being written."""
        try:
            lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return 0
        return max((json.loads(x)["step"] for x in lines if x.endswith("}")), default=0)

    def over(self, run: str = MAXP) -> str | None:
        """For `wait_until`: hopeless once the run's job has ended."""
        reason = self.cluster.over(self.job(run))
        return reason and f"{reason}; it said:\n{self.logs()[-2000:]}"

    def wait_step(self, step: int, run: str = MAXP) -> None:
        wait_until(f"{run} at step {step}", lambda: self.step(run) >= step, lambda: self.over(run))

    def stop(self, run: str = MAXP) -> int:
        """Stop the first rank where it is. Slurm continues a process before it signals it.

        Returns:
            Its process id.
        """
        pid = int(read_status(self.folder / run)["pid"])
        os.kill(pid, signal.SIGSTOP)
        return pid

    @contextmanager
    def held(self, run: str = MAXP) -> Iterator[None]:
        """Stop the first rank meanwhile, so that the run does not end."""
        pid = self.stop(run)
        yield
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def wait_said(self, state: str, run: str = MAXP) -> None:
        wait_until(f"{run} {state}", lambda: self.said(run) == state, lambda: self.over(run))

    def wait_completed(self, *runs: str) -> None:
        for run in runs or (MAXP,):
            self.wait_said("completed", run)

    def logs(self, ending: str = "err") -> str:
        """What all jobs of the sweep have written, all attempts; the trainer writes to "out"."""
        files = sorted((self.folder / ".sweep" / "jobs").glob(f"*_log.{ending}"))
        return "".join(file.read_text(errors="replace") for file in files)

    def shown(self, field: str, run: str = MAXP) -> str:
        """What scontrol shows of the run's job."""
        shown = self.cluster.run("scontrol", "--oneliner", "show", "job", self.job(run))
        return dict(part.split("=", 1) for part in shown.split() if "=" in part)[field]

    def restarts(self) -> int:
        """How often Slurm has started the job again."""
        return int(self.shown("Restarts"))

    def minutes(self) -> int:
        """How long the job has run, in whole minutes."""
        hours, minutes, _ = self.shown("RunTime").split(":")
        return 60 * int(hours) + int(minutes)


def sweep(
    cluster: Cluster,
    folder: Path,
    *,
    methods: tuple[str, ...] = ("maxP",),
    steps: int = STEPS,
    nodes: int = 1,
    time: str = "00:10:00",
    launcher: str = "torchrun",
    lead: int = 60,
    partition: str = "main",
    setup: str = "export OMP_NUM_THREADS=1",
    sbatch: str = "",
) -> Sweep:
    """A sweep file and a cluster file; nothing is submitted yet."""
    file, cluster_file = folder / "tiny.toml", folder / "two_nodes.toml"
    flags = {**FLAGS, "training.local_batch_size": 4 // nodes}
    file.write_text(
        f'scales = ["debug"]\nmethods = {json.dumps(methods)}\nlrs = [1e-2]\nseeds = [1]\n'
        f'steps = {steps}\n[resources]\nnodes = {nodes}\ntime = "{time}"\n[flags]\n'
        + "".join(f"{name} = {value}\n" for name, value in flags.items())
    )
    cluster_file.write_text(
        f'kind = "slurm"\npartition = "{partition}"\nprocesses_per_node = 1\n'
        f'cpus_per_process = 2\nlauncher = "{launcher}"\nsignal_lead_seconds = {lead}\n'
        f'setup = ["{setup}"]\n[sbatch]\n{sbatch}\n'
    )
    return Sweep(cluster, file, cluster_file)


def train(folder: Path) -> Run:
    """The run of such a sweep without any Slurm: in this process, never interrupted."""
    flags = {**FLAGS, "training.local_batch_size": 4, "steps": STEPS, "lr": 1e-2, "seed": 1}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    named = ["--scale", "debug", "--method", "maxP", "--checkpoint.enable"]
    done = run_here([*named, *words, "--output-dir", str(folder)])
    assert done.code == 0
    return done


def same(run: Run, other: Run) -> bool:
    """Whether two runs of one number of processes are equal, bit for bit, but for their speed."""

    def curve(run: Run) -> list[tuple[object, ...]]:
        made = [r for r in run.record.metrics if "loss" in r]
        return [(r["step"], r["loss"], r["grad_norm"], r["sites"]) for r in made]

    return curve(run) == curve(other) and run.validation_losses == other.validation_losses
