"""``python -m slurm``: submit sweeps, follow them, and read their results.

Exit status: 0 done, 1 some runs are not done or Slurm refused, 2 bad input, 130 interrupted.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import psutil
import tyro

from slurm import preflight, processes, show, snapshot, squeue
from slurm.cluster import RUNS, Cluster, load_cluster, runs_dirs
from slurm.commands import (
    Cancel,
    Command,
    Existing,
    Report,
    Resume,
    Retry,
    Status,
    Submit,
    Table,
    Transfer,
)
from slurm.config_file import ConfigError
from slurm.estimate import estimate, measured_speeds
from slurm.executor import Executor, SubmissionError
from slurm.ledger import LedgerError, SweepFolder, writing
from slurm.squeue import QueueError
from slurm.states import ACTIVE, Standing, State, owner_of, survey
from slurm.sweep import RunSpec, expand, load_sweep
from train.run.exit_status import BAD_INPUT, INTERRUPTED
from train.run.files import write_whole
from train.run.folder import RunFolderError
from train.run.provenance import git_commit

PROG = "python -m slurm"
DESCRIPTION = """Begin with a sweep on this machine:

python -m slurm submit configs/sweeps/debug.toml

Then show its state: python -m slurm status runs/debug. On a cluster, add --cluster NAME, and first
also --dry-run, which prints the jobs and submits nothing. docs/sweeps.md explains the rest."""

# `resume` leaves failed runs alone: their cause must be fixed first.
RESUMES = frozenset({State.MISSING, State.VANISHED, State.CANCELLED})
RETRIES = frozenset({State.FAILED})


def main(arguments: Sequence[str] | None = None) -> int:
    command = _parse(list(sys.argv[1:] if arguments is None else arguments))
    try:
        match command:
            case Submit():
                return _submit(command)
            case Status():
                return _status(command)
            case Cancel():
                return _cancel(command)
            case Retry():
                return _again(command, RETRIES)
            case Resume():
                return _again(command, RESUMES)
            case Table():
                return _table(command)
            case Report():
                return _write_report(command)
            case Transfer():
                return _transfer(command)
    except (ConfigError, LedgerError, RunFolderError) as error:
        return _error(error, BAD_INPUT)
    except (SubmissionError, QueueError, psutil.Error) as error:
        return _error(error, 1)
    except BrokenPipeError:  # for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # for example a folder was deleted meanwhile
        return _error(error, 1)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parse(given: list[str]) -> Command:
    """The command that a command line names, with its flags.

    Each is a command line of its own: of a subcommand, tyro's messages name another program.
    """
    commands: dict[str, type[Command]] = {kind.__name__.lower(): kind for kind in get_args(Command)}
    name = given[0] if given else ""
    config = (tyro.conf.FlagCreatePairsOff,)
    if name in commands:
        return tyro.cli(commands[name], args=given[1:], prog=f"{PROG} {name}", config=config)
    return tyro.cli(Command, args=given, prog=PROG, config=config, description=DESCRIPTION)


def _submit(asked: Submit) -> int:
    sweep = load_sweep(asked.sweep, asked.overrides)
    cluster = load_cluster(asked.cluster)
    for scale in sweep.scales:
        cluster.check(sweep.resources[scale], scale)
    folder = SweepFolder((asked.runs_dir or Path(cluster.runs_dir or RUNS)) / sweep.name)
    runs = expand(sweep)
    where = _executor(folder, cluster)
    if asked.dry_run:
        for line in where.plan(runs):
            print(line)
        costs = estimate(sweep, runs, cluster, measured_speeds(folder.path))
        print("\n".join(show.costs(costs, "GPU" if cluster.gpus_per_node else "process")))
    folder.merged(sweep.name, runs)  # quicker than the trainer's checks
    preflight.check(runs, cluster)
    if asked.dry_run:
        return 0
    with folder.lock():
        folder.enter(sweep.name, runs)
    return _start(where, runs, where.submits)


def _executor(folder: SweepFolder, cluster: Cluster) -> Executor:
    """The executor for the cluster's kind."""
    if cluster.kind == "local":
        from slurm.local import LocalExecutor

        return LocalExecutor(folder, cluster)
    from slurm.submit import SlurmExecutor  # imports submitit

    return SlurmExecutor(folder, cluster)


def _start(where: Executor, runs: Sequence[RunSpec], states: frozenset[State]) -> int:
    with writing(where.folder.code):
        code = snapshot.take(where.folder.code, git_commit())
    return where.start(runs, code, states)


def _status(asked: Status) -> int:
    if asked.watch is not None and not asked.watch > 0:
        raise ConfigError(f"--watch {asked.watch:g}: give a positive number of seconds")
    folder = _existing(asked)
    while True:
        try:
            standings = survey(folder, folder.runs())
        except QueueError as error:
            if asked.watch is None:
                raise
            print(f"{error}; asking again", file=sys.stderr)  # Slurm may be restarting
        else:
            _print_status(folder, standings, asked)
            # A local command may be between two runs, when none is active.
            if asked.watch is None or not (
                any(s.state in ACTIVE for s in standings) or folder.commands()
            ):
                return 0
        time.sleep(asked.watch)


def _print_status(folder: SweepFolder, standings: Sequence[Standing], asked: Status) -> None:
    if asked.format == "json":
        for standing in standings:
            print(json.dumps(show.as_record(folder, standing)), flush=True)
        return
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    table = show.lines(folder, standings, width=width, everything=asked.all)
    end = [show.summary(standings), *show.advice(folder, standings)]
    clear = "\033[2J\033[H" if terminal and asked.watch is not None else ""
    print(clear + "\n".join([*table, "", *end]), flush=True)


def _cancel(asked: Cancel) -> int:
    folder = _existing(asked)
    with folder.lock():
        active = [s for s in _named(folder, asked.runs) if s.state in ACTIVE]
        ids = [s.entry.job_id for s in active if s.entry is not None]
        # Before the jobs end, so that none of them counts as vanished.
        for standing in active:
            folder.mark_cancelled(standing.run.name)
        if ids:
            squeue.cancel(ids)
        local = [(s, owner) for s in active if (owner := owner_of(s.status, s.record)) is not None]
        here = [process for _, owner in local if (process := owner.find())]
        elsewhere = [f"{s.run.name} on {owner.host}" for s, owner in local if not owner.here]
        if not asked.runs:
            for command in folder.commands():
                with contextlib.suppress(psutil.NoSuchProcess):
                    command.terminate()
        for process in here:
            processes.send(process, processes.STOP)
    print(f"cancelled {show.plural(len(ids), 'job')} and {show.plural(len(here), 'process')}")
    if elsewhere:
        print(f"interrupt these on their own machines: {', '.join(elsewhere)}")
        return 1
    return 0


def _again(asked: Resume, states: frozenset[State]) -> int:
    folder = _existing(asked)
    standings = _named(folder, asked.runs)
    clusters = {s.record.cluster for s in standings if s.record is not None}
    if asked.cluster is None and len(clusters) > 1:
        raise ConfigError(
            f"--cluster: the runs were submitted to {' and '.join(sorted(clusters))}: choose one"
        )
    cluster = load_cluster(asked.cluster or next(iter(clusters), "local"))
    for standing in standings:
        cluster.check(standing.run.resources, standing.run.scale)
    return _start(_executor(folder, cluster), [s.run for s in standings], states)


def _table(asked: Table) -> int:
    from train.table import main as table  # pandas and matplotlib, which nothing else here needs

    folder = _existing(asked).path
    table(folder, metric=asked.metric, format=asked.format, to=asked.to)
    return 0


def _write_report(asked: Report) -> int:
    from train.results.report import main as report

    folder = _existing(asked).path
    report(folder, to=asked.to, plots_to=asked.plots_to)
    return 0


def _transfer(asked: Transfer) -> int:
    from slurm import carry  # as above

    try:
        carried = carry.carry(_existing(asked), asked.metric)
    except carry.NoBaseError as error:
        return _error(error, 1)
    if asked.format in ("text", "markdown"):
        text = carry.as_text(carried, markdown=asked.format == "markdown")
    else:
        text = carry.as_csv(carried) if asked.format == "csv" else carry.as_json(carried)
    if asked.to is None:
        print(text)
        return 0
    try:
        write_whole(asked.to, text + "\n")
    except OSError as error:
        raise OSError(f"--to {asked.to} cannot be written ({error.strerror})") from error
    return 0


def _existing(asked: Existing) -> SweepFolder:
    """The folder of a submitted sweep, which is named by its path or by its sweep file."""
    sweep = asked.sweep
    places = [asked.runs_dir] if asked.runs_dir else runs_dirs()
    if sweep.suffix != ".toml":
        paths = [sweep]
    elif sweep.exists():
        name = load_sweep(sweep).name
        paths = [place / name for place in places]
    else:
        raise ConfigError(
            f"SWEEP {sweep}: no such file: name the sweep's folder instead, as "
            f"{places[0] / sweep.stem}"
        )
    folders = [folder for folder in map(SweepFolder, paths) if folder.runs()]
    if len(folders) > 1:
        both = " and ".join(str(folder.path) for folder in folders)
        raise ConfigError(
            f"SWEEP {sweep}: {both} both hold this sweep: pass --runs-dir, or the folder"
        )
    if not folders:
        raise ConfigError(
            f"SWEEP {sweep}: {paths[0]} holds no sweep: submit one, or pass --runs-dir"
        )
    return folders[0]


def _named(folder: SweepFolder, names: Sequence[str]) -> list[Standing]:
    runs = {run.name: run for run in folder.runs()}
    unknown = [name for name in names if name not in runs]
    if unknown:
        raise ConfigError(
            f"--runs {unknown[0]}: not a run of {folder.path}; `status --all` lists them"
        )
    return survey(folder, [runs[name] for name in names] if names else list(runs.values()))


def _error(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
