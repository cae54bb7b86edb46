"""A run's folder, the only record of a run.

``config.json`` says which experiment it is, ``metrics.jsonl`` holds one JSON object a line,
``status.json`` says how far it got; ``tb/`` and ``checkpoint/`` belong to their writers.
No torch here: what reads results must start at once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import operator
import os
import platform
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

log = logging.getLogger(__name__)

CONFIG = "config.json"
METRICS = "metrics.jsonl"
STATUS = "status.json"
JOB = "job.json"
"""Which job of a sweep the run belongs to; the `slurm` package's."""
COMMIT = ".git_commit"
"""Beside the packages in a copy of the code that is no checkout: the commit it was made from."""

NOT_IDENTITY = frozenset(
    {
        # where, when, with what
        "output_dir", "dump_folder", "hf_assets_path", "versions", "git_commit", "created",
        # on how many devices, and how the work is spread over them
        "parallelism", "local_batch_size", "comm", "compile", "activation_checkpoint",
        "enable_cpu_offload", "disable_cuda_graphs", "gc_freq",
        # what is written about it, and how often
        "metrics", "profiler", "interval", "keep_latest_k", "async_mode", "load_step",
    }
)  # fmt: skip
"""Keys, at any depth, that do not say which experiment it is: with others it is continued."""

State = Literal["queued", "running", "preempted", "completed", "diverged", "failed"]
FINISHED: tuple[State, ...] = ("completed", "diverged")
"""States that are results: nothing is left to run."""

_PACKAGES = ("maxp", "torch", "torchtitan", "pulp", "highspy")
_DIFFERENCES_SHOWN = 3


class RunFolderError(Exception):
    """The folder cannot be used or read; the message is one line with the remedy."""


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder holds: ``metrics`` are the records of metrics.jsonl in file order."""

    path: Path
    config: dict[str, Any]
    status: dict[str, Any]
    """Content of status.json, empty while there is none."""
    metrics: list[dict[str, Any]]
    skipped_lines: int
    """Lines of metrics.jsonl that were not JSON objects."""


class RunFolder:
    """The folder of one run, as the process that runs it sees it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.tb = self.path / "tb"
        self.checkpoint = self.path / "checkpoint"

    def claim(self, config: Mapping[str, Any]) -> Literal["new", "completed", "resumable"]:
        """Take the folder for the run of ``config``, creating it if needed.

        Returns "new" to the one caller that created the run, "completed" where the same run has a
        result (completed or diverged), else "resumable". That another process may be running the
        same configuration right now is for the caller to judge, by the status.

        Raises RunFolderError if the folder holds another configuration's run, somebody else's
        files, or a run whose files are corrupt; nothing is overwritten.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            created = self._create_config(config)
        except OSError as error:
            raise RunFolderError(
                f"--output-dir {self.path} cannot be used ({error.strerror}): choose another one"
            ) from error
        if created:
            return "new"
        differences = _differences(_read_config(self.path), config)
        if differences:
            hidden = len(differences) - _DIFFERENCES_SHOWN
            more = f"; and {hidden} more" if hidden > 0 else ""
            raise RunFolderError(
                f"--output-dir {self.path} holds the run of another configuration "
                f"({'; '.join(differences[:_DIFFERENCES_SHOWN])}{more}): "
                "choose another --output-dir, or move that folder away"
            )
        return "completed" if read_status(self.path).get("state") in FINISHED else "resumable"

    def _create_config(self, config: Mapping[str, Any]) -> bool:
        """Write config.json unless there is one; True for the one process that wrote it."""
        target = self.path / CONFIG
        names = os.listdir(self.path)
        # A dot-name of ours is another process about to write; a sweep announces its runs.
        ours = {STATUS, JOB, ".lock"}
        strangers = [
            name
            for name in names
            if name not in ours and not name.startswith((f".{CONFIG}.", f".{STATUS}.", f".{JOB}."))
        ]
        # Asked after the listing, so that a rival's later files are never taken for a stranger's.
        if target.exists():
            return False
        if strangers:
            raise RunFolderError(
                f"--output-dir {self.path} is not empty ({min(strangers)}, ...) and holds no run: "
                "choose another --output-dir, or an empty folder"
            )
        content = {
            "identity": identity(config),
            "config": config,
            "versions": versions(),
            "git_commit": git_commit(),
        }
        with _temporary(target, _json(content, indent=2) + "\n") as temporary:
            try:
                os.link(temporary, target)  # whole, and refused where the file is already there
            except FileExistsError:
                return False
        return True

    def set_status(
        self, state: State, *, step: int | None = None, reason: str | None = None, **extra: Any
    ) -> None:
        """Replace status.json; a running run also says on which host and as which process."""
        if state not in get_args(State):
            raise ValueError(
                f"unknown state {state!r}, expected one of {', '.join(get_args(State))}"
            )
        status: dict[str, Any] = {"state": state, "step": step, "reason": reason}
        status["updated"] = datetime.now(UTC).isoformat(timespec="seconds")
        if state == "running":
            status |= {"host": socket.gethostname(), "pid": os.getpid()}
        if clash := status.keys() & extra.keys():
            raise ValueError(f"{min(clash)} is set by set_status itself")
        status |= extra
        write_whole(self.path / STATUS, _json(_plain(status), indent=2) + "\n")

    def describe(self) -> str:
        """The state in words, e.g. "diverged at step 12"."""
        return describe_status(read_status(self.path))

    def metrics(self) -> MetricsLog:
        """The run's metrics file, for writing."""
        return MetricsLog(self.path / METRICS)


class MetricsLog:
    """metrics.jsonl: one JSON object a line, written by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line. Non-finite numbers become null; numpy and torch scalars plain numbers."""
        line = _json(_plain(record)).encode() + b"\n"
        with self.path.open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a writer was killed mid-line: lose its line, not ours
                    line = b"\n" + line
            file.write(line)

    def rewind(self, step: int) -> int:
        """Keep only the records up to ``step``, where a run resumes; returns how many lines went.

        Lines that are no records, and records without a step, go too.
        """
        if not self.path.exists():
            return 0
        lines = [line for line in self.path.read_bytes().split(b"\n") if line]
        kept = [line for line in lines if _step(line) <= step]
        write_whole(self.path, b"".join(line + b"\n" for line in kept).decode())
        dropped = len(lines) - len(kept)
        log.info("%s: rewound to step %d, %d lines dropped", self.path, step, dropped)
        return dropped

    def archive(self) -> Path | None:
        """Put the file aside as metrics-1.jsonl, -2, ..., where a run starts over.

        Returns the new path, or None where there was no file.
        """
        if not self.path.exists():
            return None
        names = (path.stem.partition("-")[2] for path in self.path.parent.glob("metrics-*.jsonl"))
        number = 1 + max((int(name) for name in names if name.isdecimal()), default=0)
        return self.path.rename(self.path.with_name(f"metrics-{number}.jsonl"))


def load_run(path: str | os.PathLike[str], *, metrics: bool = True) -> RunRecord:
    """Read a run's folder; ``metrics=False`` leaves its metrics file unread.

    A truncated or corrupt line of metrics is skipped, counted and logged. Raises RunFolderError if
    the folder holds no run, or its config.json or status.json is corrupt.
    """
    folder = Path(path)
    config, status = _read_config(folder), read_status(folder)
    records: list[dict[str, Any]] = []
    skipped = 0
    file = folder / METRICS
    if metrics and file.exists():
        for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
            record = parse_record(line) if line else {}
            if record is None:
                log.warning("%s line %d is not a JSON object: skipped", file, number)
                skipped += 1
            elif line:
                records.append(record)
    return RunRecord(folder, config, status, records, skipped)


def identity(config: Mapping[str, Any]) -> str:
    """Name of an experiment: 16 hex digits of the SHA-256 of its canonical JSON.

    Independent of the order of keys and of everything named in NOT_IDENTITY. Raises TypeError for
    a value that has no JSON form.
    """
    return hashlib.sha256(_canonical(_defining(config)).encode()).hexdigest()[:16]


def describe_status(status: Mapping[str, Any]) -> str:
    """The content of a status.json in words, e.g. "failed at step 12: out of memory"."""
    words = str(status.get("state", "no status yet"))
    if status.get("step") is not None:
        words += f" at step {status['step']}"
    if status.get("reason"):
        words += f": {' '.join(str(status['reason']).split())}"
    return words


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit() -> str | None:
    """Commit of the checkout this file is in, "+dirty" when tracked files are modified.

    None without git, without a commit, or where this file lies in no checkout of its own.
    """
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(root), *words]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    try:
        if (root / COMMIT).is_file():
            return (root / COMMIT).read_text().strip() or None
        # An installed copy may lie inside somebody's repository: that commit says nothing of it.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        commit = git("rev-parse", "--verify", "HEAD")
        return commit + ("+dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def parse_record(line: bytes) -> dict[str, Any] | None:
    """One line of metrics.jsonl, or None where it is not a JSON object."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def write_whole(target: Path, text: str) -> None:
    """Replace ``target`` in one step: no reader, and no crash, ever sees a part of ``text``."""
    with _temporary(target, text) as temporary:
        os.replace(temporary, target)


@contextmanager
def _temporary(target: Path, text: str) -> Iterator[Path]:
    """A file beside ``target`` that holds ``text``, gone at the end unless renamed."""
    # Not mkstemp: its mode 0600 would hide a run from the colleagues who share the folder.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _read_config(folder: Path) -> dict[str, Any]:
    remedy = "restore it, or choose another --output-dir"
    config = _read_object(folder / CONFIG, remedy).get("config")
    if not isinstance(config, dict):
        raise RunFolderError(f"{folder / CONFIG} is not the configuration of a run: {remedy}")
    return config


def read_status(folder: Path) -> dict[str, Any]:
    file = folder / STATUS
    if not file.exists():
        return {}
    remedy = "remove that file to resume the run of --output-dir"
    status = _read_object(file, remedy)
    if status.get("state") not in get_args(State):
        raise RunFolderError(f"{file} is corrupt (state {status.get('state')!r}): {remedy}")
    return status


def _read_object(file: Path, remedy: str) -> dict[str, Any]:
    try:
        content = parse_record(file.read_bytes())
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read ({error.strerror}): {remedy}") from error
    if content is None:
        raise RunFolderError(f"{file} is corrupt (not a JSON object): {remedy}")
    return content


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The defining keys whose values differ, as "a.b: 1 there, 2 here"."""
    ours, theirs = _leaves(_defining(here)), _leaves(_defining(there))
    return [
        f"{key}: {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} here"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> canonical JSON of every value that is not itself a non-empty object."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: _canonical(value)}
    found: dict[str, str] = {}
    for key, item in value.items():
        found |= _leaves(item, f"{prefix}.{key}" if prefix else key)
    return found


def _defining(value: Any) -> Any:
    """``value`` without NOT_IDENTITY, in the form in which equal values have equal JSON."""
    if isinstance(value, Mapping):
        return {str(k): _defining(v) for k, v in value.items() if k not in NOT_IDENTITY}
    if isinstance(value, list | tuple):
        return [_defining(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # lr 1 and lr 1.0 are one experiment
    return value


def _canonical(value: Any) -> str:
    return _json(value, sort_keys=True, separators=(",", ":"))


def _json(value: Any, **layout: Any) -> str:
    # Paths only: any other object's text may hold an address and differ from run to run.
    def default(item: Any) -> str:
        if isinstance(item, os.PathLike):
            return os.fspath(item)
        raise TypeError(f"{item!r} ({type(item).__name__}) cannot be written as JSON")

    return json.dumps(value, default=default, **layout)


def _plain(value: Any, name: str = "record") -> Any:
    """``value`` with numbers of numpy and torch made plain and non-finite ones None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name!r} is not a number: {value!r}") from error
    return number if math.isfinite(number) else None


def _step(line: bytes) -> float:
    """Step of a metrics line, infinite where it has none."""
    step = (parse_record(line) or {}).get("step")
    return step if isinstance(step, int | float) else math.inf
