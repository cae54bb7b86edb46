"""``python -m slurm submit SWEEP.toml --cluster NAME``: sweeps, from submission to their tables.

Exit status: 0 done, 1 something is left or failed, 2 bad input, 130 interrupted.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tyro
from tqdm import tqdm

from slurm import preflight, queue, show, snapshot
from slurm.cluster import Cluster, load_cluster
from slurm.commands import (
    RUNS,
    Cancel,
    Command,
    Report,
    Resume,
    Retry,
    Status,
    Submit,
    Table,
)
from slurm.estimate import estimate, measured_speeds
from slurm.ledger import LedgerError, SweepFolder
from slurm.local import LocalRunner
from slurm.queue import QueueError
from slurm.states import ACTIVE, RESULTS, Standing, State, survey
from slurm.submit import SubmissionError, batches, script, submit
from slurm.sweep import RunSpec, expand, load_sweep
from slurm.sweep import Sweep as SweepPlan
from slurm.toml import ConfigError
from train.run_folder import RunFolderError, git_commit

BAD_INPUT = 2

SUBMIT = frozenset({State.MISSING})
RESUME = SUBMIT | {State.VANISHED, State.CANCELLED}
RETRY = frozenset({State.FAILED})


def main(arguments: Sequence[str] | None = None) -> int:
    command: Command = tyro.cli(
        Command,
        args=arguments,
        prog="python -m slurm",
        description=(__doc__ or "").splitlines()[0],
    )
    try:
        match command:
            case Submit():
                return _submit(command)
            case Status():
                return _status(command)
            case Cancel():
                return _cancel(command)
            case Retry():
                return _again(command, RETRY)
            case Resume():
                return _again(command, RESUME)
            case Table():
                return _table(command)
            case Report():
                return _write_report(command)
    except (ConfigError, LedgerError, RunFolderError) as error:
        return _error(error, BAD_INPUT)
    except (SubmissionError, QueueError) as error:
        return _error(error, 1)
    except OSError as error:  # a full disk, a folder that went away
        return _error(error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _submit(asked: Submit) -> int:
    sweep = load_sweep(asked.sweep, asked.overrides)
    cluster = load_cluster(asked.cluster)
    for scale in sweep.scales:
        cluster.check(sweep.resources[scale], scale)
    folder = SweepFolder((asked.runs_dir or Path(cluster.runs_dir or RUNS)) / sweep.name)
    runs = expand(sweep)
    if asked.dry_run:
        return _dry_run(sweep, cluster, runs, folder)
    if cluster.container is None:  # else the trainer and its packages may be in there alone
        preflight.check(runs, cluster)
    with folder.lock():
        folder.enter(sweep.name, runs)
    return _start(folder, sweep.name, cluster, runs, SUBMIT)


def _dry_run(
    sweep: SweepPlan, cluster: Cluster, runs: Sequence[RunSpec], folder: SweepFolder
) -> int:
    if cluster.kind == "slurm":
        for batch in batches(runs, 1000):
            print(script(sweep.name, cluster, batch, folder, folder.code / "SNAPSHOT"))
            for index, run in enumerate(batch.runs):
                print(f"# {index}: python -m train {' '.join(run.arguments)}")
            print()
    else:
        for run in runs:
            print(f"python -m train {' '.join(run.arguments)} --output-dir {folder.run(run.name)}")
    costs = estimate(sweep, runs, cluster, measured_speeds(folder.path))
    print("\n".join(show.costs(costs, "GPU" if cluster.gpus_per_node else "process")))
    return 0


def _start(
    folder: SweepFolder,
    name: str,
    cluster: Cluster,
    runs: Sequence[RunSpec],
    wanted: frozenset[State],
) -> int:
    """Submit those of the runs that are in a wanted state."""
    code = snapshot.take(folder.code, git_commit())
    if cluster.kind == "local":
        chosen = [s.run for s in survey(folder, runs) if s.state in wanted]
        _report(folder, runs, len(chosen))
        if not LocalRunner(folder, cluster, code, Path.cwd(), wanted).run(chosen):
            return 130
        found = survey(folder, runs)
        print(show.summary(found))
        return 0 if all(s.state in RESULTS | ACTIVE for s in found) else 1
    with folder.lock():
        chosen = [s.run for s in survey(folder, runs) if s.state in wanted]
        _report(folder, runs, len(chosen))
        with tqdm(total=len(chosen), desc="submitting", unit="job", delay=2) as bar:
            submit(name, cluster, chosen, folder, code, Path.cwd(), told=bar.update)
    if chosen:
        print(f"where they stand: python -m slurm status {folder.path}")
    return 0


def _report(folder: SweepFolder, runs: Sequence[RunSpec], count: int) -> None:
    rest = len(runs) - count
    print(
        f"{folder.path}: {count} of {len(runs)} runs to submit"
        + (f", {rest} are submitted or have their result" if rest else "")
    )


def _status(asked: Status) -> int:
    folder = _existing(asked.sweep, asked.runs_dir)
    while True:
        found = survey(folder, folder.runs())
        if asked.watch is not None and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        if asked.format == "json":
            for standing in found:
                print(json.dumps(show.as_record(folder, standing)))
        else:
            print("\n".join([*show.lines(folder, found), "", show.summary(found)]), flush=True)
        if asked.watch is None or not any(s.state in ACTIVE for s in found):
            return 0
        time.sleep(asked.watch)


def _cancel(asked: Cancel) -> int:
    folder = _existing(asked.sweep, asked.runs_dir)
    with folder.lock():
        active = [s for s in _named(folder, asked.runs) if s.state in ACTIVE]
        ids = [s.entry.job_id for s in active if s.entry is not None]
        # First, so that none of them is seen as vanished.
        for standing in active:
            folder.mark_cancelled(standing.run.name)
        if ids:
            queue.cancel(ids)
    here = [s.run.name for s in active if s.entry is None]
    print(f"{len(ids)} jobs cancelled")
    if here:
        print(f"running on a machine, not in a job: {', '.join(here)}; interrupt that command")
        return 1
    return 0


def _again(asked: Resume, wanted: frozenset[State]) -> int:
    folder = _existing(asked.sweep, asked.runs_dir)
    found = _named(folder, asked.runs)
    clusters = {s.record.cluster for s in found if s.record is not None}
    if asked.cluster is None and len(clusters) > 1:
        raise ConfigError(
            f"--cluster: the runs were submitted to {' and '.join(sorted(clusters))}: name one"
        )
    cluster = load_cluster(asked.cluster or next(iter(clusters), "local"))
    for standing in found:
        cluster.check(standing.run.resources, standing.run.scale)
    return _start(folder, folder.path.name, cluster, [s.run for s in found], wanted)


def _table(asked: Table) -> int:
    from train.table import main as table  # pandas and matplotlib, which nothing else here needs

    folder = _existing(asked.sweep, asked.runs_dir).path
    table(folder, metric=asked.metric, format=asked.format, to=asked.to)
    return 0


def _write_report(asked: Report) -> int:
    from train.results.report import main as report

    folder = _existing(asked.sweep, asked.runs_dir).path
    report(folder, to=asked.to, plots_to=asked.plots_to)
    return 0


def _existing(sweep: Path, runs_dir: Path) -> SweepFolder:
    """The folder of a sweep that is named by it, or by its file."""
    path = runs_dir / load_sweep(sweep).name if sweep.suffix == ".toml" else sweep
    folder = SweepFolder(path)
    if not folder.runs():
        raise ConfigError(f"SWEEP {sweep}: {path} holds no sweep: submit one, or pass --runs-dir")
    return folder


def _named(folder: SweepFolder, names: Sequence[str]) -> list[Standing]:
    runs = {run.name: run for run in folder.runs()}
    unknown = [name for name in names if name not in runs]
    if unknown:
        raise ConfigError(f"--runs {unknown[0]}: no run of {folder.path}; see its status")
    return survey(folder, [runs[name] for name in names] if names else list(runs.values()))


def _error(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
