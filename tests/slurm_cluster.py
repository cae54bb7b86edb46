"""The two-node Slurm of scripts/local_slurm.sh as tests use it: started, asked, waited for, broken.

Which process a signal reaches (Slurm 22.05, measured on this very Slurm):

| sent by                                   | batch shell | its children | tasks of srun |
|-------------------------------------------|-------------|--------------|---------------|
| scancel --signal=USR2, with srun          | -           | -            | USR2          |
| scancel --signal=USR2, without srun       | -           | -            |               |
| scancel --batch --signal=USR2             | USR2        | -            | -             |
| scancel --full --signal=USR2              | USR2        | USR2         | USR2          |
| --signal=USR2@T: time limit, preemption   | -           | -            | CONT, USR2    |
| --signal=B:USR2@T: the same               | CONT, USR2  | -            | -             |
| preemption without --signal: first notice | -           | -            | CONT, TERM    |
| the end of time or grace, scontrol        | CONT, TERM  | CONT, TERM   | CONT, TERM    |
| requeue, scancel; KILL follows            |             |              |               |

Time limits and grace are looked at every 30 s only: a notice comes up to 60 s early, an end up to
30 s late. A job that reaches its time limit ends as TIMEOUT: --requeue does not bring it back.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "local_slurm.sh"
MISSING = [name for name in ("sinfo", "slurmctld", "slurmd", "munged") if not shutil.which(name)]
SKIP_REASON = f"not installed: {', '.join(MISSING)}; as root: bash {SCRIPT.name} install"


def local_slurm(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs scripts/local_slurm.sh on the folder; returns its code and its output."""
    command = ["bash", str(SCRIPT), *arguments, "--dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def wait_until(what: str, holds: Callable[[], bool], seconds: float = 60) -> None:
    """Asks until it holds.

    Raises:
        TimeoutError: it did not in that time; the message says what was waited for.
    """
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)


@dataclass(frozen=True)
class Cluster:
    """A running local Slurm. Commands are given its SLURM_CONF, and end within a time."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, without Slurm's variables but for SLURM_CONF."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        return kept | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str, seconds: float = 60) -> str:
        """A command's standard output.

        Raises:
            subprocess.CalledProcessError: it failed.
            subprocess.TimeoutExpired: it did not end in time.
        """
        done = subprocess.run(
            command,
            env=self.environment,
            timeout=seconds,
            check=True,
            text=True,
            stdout=subprocess.PIPE,
        )
        return done.stdout.strip()

    def sbatch(self, script: Path, *flags: str) -> str:
        """Submits; returns the job's id. Output goes beside the script."""
        output = script.parent / "%x-%A-%a.out"
        return self.run("sbatch", "--parsable", f"--output={output}", *flags, str(script))

    def state(self, job: str) -> str:
        """RUNNING, PENDING, ...; an ended job's stays for MinJobAge (300 s), then it is ''."""
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def wait_state(self, job: str, *states: str, seconds: float = 60) -> None:
        """Waits until the job is in one of the states."""
        wait_until(f"job {job} {states}", lambda: self.state(job) in states, seconds)

    def wait_saved(self, name: str) -> None:
        """Waits until a job of this name is on slurmctld's disk.

        It writes at most every five seconds: killed before, it has forgotten a job that sbatch
        acknowledged, or takes one that had started for one that waits.
        """
        saved = self.folder / "state" / "job_state"
        wait_until(
            f"{name} in {saved}",
            lambda: saved.exists() and name.encode() in saved.read_bytes(),
        )

    def control(self, *arguments: str) -> None:
        """An action of scripts/local_slurm.sh: restart-controller, kill-node n2, start-node n2."""
        done = local_slurm(*arguments, folder=self.folder)
        assert done.returncode == 0, done.stderr

    def processes(self) -> list[int]:
        """Ids of all living processes of this Slurm and its jobs, found by their environment."""
        mark = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        return [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/environ")
            if mark in _environ(path)
        ]


def _environ(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except OSError:  # it ended while we looked
        return []


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Starts a Slurm in a new folder of its own, and stops it."""
    # Not pytest's tmp_path, which can be too long for Unix sockets.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        started = local_slurm("start", folder=folder)
        assert started.returncode == 0, started.stderr
        try:
            yield Cluster(folder)
        finally:
            stopped = local_slurm("stop", folder=folder)
            assert stopped.returncode == 0, stopped.stderr
