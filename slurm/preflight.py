"""Check with the trainer, before submission, that it accepts the jobs' command lines."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterable

from slurm.cluster import Cluster, Container
from slurm.config_file import ConfigError
from slurm.sweep import RunSpec
from train.results.names import value_text


def check(runs: Iterable[RunSpec], cluster: Cluster) -> None:
    """Let the trainer parse and check the flags of one run per scale, method and value of an axis.

    The checks assume the cluster's number of processes, but not its GPUs. Paths in a container are
    checked where they are mounted from. Imports torch.

    Raises:
        ConfigError: the trainer refuses the flags; the message is the trainer's.
    """
    first: dict[tuple[str, ...], RunSpec] = {}
    for run in runs:
        first.setdefault((run.scale, run.method), run)
        for name, value in run.axes.items():
            first.setdefault((name, "=", value_text(value)), run)
    former = os.environ.get("WORLD_SIZE")
    try:
        for run in {run.name: run for run in first.values()}.values():
            processes = run.resources.nodes * cluster.processes(run.resources)
            os.environ["WORLD_SIZE"] = str(processes)
            words = [_mounted_from(word, cluster.container) for word in run.arguments]
            if (printed := _refusal(words, capture=bool(run.axes))) is None:
                continue
            for name, value in run.axes.items():
                if _refusal(_without(words, name), capture=True) is None:
                    raise ConfigError(f"axes.{name}: {_reason(name, value_text(value), printed)}")
            print(printed, file=sys.stderr, end="")
            raise ConfigError(
                f"{run.name}: python -m train does not take its flags (see above); correct [flags] "
                "of the sweep, or --set"
            )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{run.name}: {error}") from error
    finally:
        os.environ.pop("WORLD_SIZE", None)
        if former is not None:
            os.environ["WORLD_SIZE"] = former


def _refusal(words: list[str], *, capture: bool) -> str | None:
    """What the trainer prints about flags that it cannot read; None if it takes them.

    Args:
        capture: keep the text from the terminal; else it is printed, and the result is empty.
    """
    from train.cli import parse

    printed = io.StringIO()
    try:
        with contextlib.ExitStack() as stack:
            if capture:
                stack.enter_context(contextlib.redirect_stderr(printed))
                stack.enter_context(contextlib.redirect_stdout(printed))
            parse(words)
    except SystemExit:
        return printed.getvalue()
    return None


def _without(words: list[str], name: str) -> list[str]:
    """``words`` without a flag and its values."""
    section, dot, last = name.rpartition(".")
    spellings = (f"--{name}", f"--{section}{dot}no_{last}")
    begin = next(i for i, word in enumerate(words) if word in spellings)
    end = begin + 1
    while end < len(words) and not words[end].startswith("--"):
        end += 1
    return words[:begin] + words[end:]


def _reason(name: str, value: str, printed: str) -> str:
    """One line of what tyro printed: a title, a rule, the error, a rule, help."""
    if re.search(rf"Unrecognized options: --{re.escape(name)}\b", printed):
        return "no flag of `python -m train`; --help-all lists its flags"
    text = re.split(r"[-─]{5,}", printed)
    error = " ".join(text[1].replace("│", " ").split()) if len(text) > 2 else "not taken"
    return f"{value}: {error.removeprefix('Error parsing ')}; correct it"


def _mounted_from(word: str, container: Container | None) -> str:
    """A path in the container as a path of this machine; other words unchanged."""
    for mount in container.mounts if container else ():
        here, there = mount.split(":")[:2]
        if word == there or word.startswith(f"{there}/"):
            return here + word.removeprefix(there)
    return word
