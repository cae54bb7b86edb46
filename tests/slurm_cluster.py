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
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from waiting import wait_until

SCRIPT = Path(__file__).parents[1] / "scripts" / "local_slurm.sh"
MISSING = [name for name in ("sinfo", "slurmctld", "slurmd", "munged") if not shutil.which(name)]
SKIP_REASON = f"not installed: {', '.join(MISSING)}; as root: bash {SCRIPT.name} install"

# Test sessions beside each other start their Slurm one after the other: one of them puts up a
# foreign controller, beside which none starts.
STARTING = FileLock(Path(tempfile.gettempdir()) / f"maxp-slurm-tests-{os.getuid()}.lock")
# States that a job does not leave; a job that Slurm no longer knows has none.
FINAL = {"", "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL",
         "OUT_OF_MEMORY", "TIMEOUT"}  # fmt: skip


def local_slurm(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs scripts/local_slurm.sh on the folder; returns its code and its output."""
    command = ["bash", str(SCRIPT), *arguments, "--dir", str(folder)]
    with STARTING if arguments[0] == "start" else nullcontext():
        return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Cluster:
    """A running local Slurm. Commands are given its SLURM_CONF."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, without Slurm's variables but for SLURM_CONF."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        return kept | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str) -> str:
        """A command's standard output.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        done = subprocess.run(
            command, env=self.environment, check=True, text=True, stdout=subprocess.PIPE
        )
        return done.stdout.strip()

    def sbatch(self, script: Path, *flags: str) -> str:
        """Submits; returns the job's id. Output goes beside the script."""
        output = script.parent / "%x-%A-%a.out"
        return self.run("sbatch", "--parsable", f"--output={output}", *flags, str(script))

    def state(self, job: str) -> str:
        """RUNNING, PENDING, ...; an ended job's stays for MinJobAge, then it is ''."""
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def over(self, job: str) -> str | None:
        """For `wait_until`: hopeless once the job has ended."""
        state = self.state(job)
        return f"job {job} has ended: {state or 'unknown'}" if state in FINAL else None

    def wait_state(self, job: str, state: str) -> None:
        """Waits until the job is in the state."""
        wait_until(f"job {job} {state}", lambda: self.state(job) == state, lambda: self.over(job))

    def wait_no_job(self) -> None:
        """Waits until no job waits, runs or is about to end."""
        wait_until("no job left", lambda: not self.run("squeue", "--noheader"))

    def cancel_all(self) -> None:
        """Cancels what jobs there are, and waits until they are gone."""
        for job in set(self.run("squeue", "--noheader", "--format=%F").split()):
            self.run("scancel", job)
        self.wait_no_job()

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
def running_cluster(logs: Path) -> Iterator[Cluster]:
    """Starts a Slurm in a new folder of its own, and stops it.

    Args:
        logs: a new folder for the daemons' logs, written at the end.
    """
    # Not pytest's tmp_path, which can be too long for Unix sockets.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        started = local_slurm("start", folder=folder)
        assert started.returncode == 0, started.stderr
        try:
            yield Cluster(folder)
        finally:
            stopped = local_slurm("stop", folder=folder)
            shutil.copytree(folder / "log", logs)
            assert stopped.returncode == 0, stopped.stderr
