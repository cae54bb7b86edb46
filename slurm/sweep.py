"""A sweep file, and the runs that it describes: scales x axes x learning rates x seeds x methods.

    name = "s1"                         # optional: the file's name
    scales = ["s1"]
    methods = ["maxP", "mup-full", "mup-no"]
    lrs = [1e-3, 1e-2]
    seeds = [1, 2]
    steps = 1000                        # optional: 20 tokens per non-embedding parameter, or
                                        # the number that a scale of images has

    [flags]                             # any flag of `python -m train`
    training.local_batch_size = 8

    [axes]                              # any flag, with several values
    training.max_norm = [0.5, 1]

    [resources]                         # for every scale
    nodes = 1
    time = "08:00:00"

    [scale.s1]                          # for one: steps, nodes, gpus_per_node, time
    time = "02:00:00"
    [scale.s1.flags]
    training.local_batch_size = 16

Expanding a sweep imports no torch: 10,000 runs take a second or two.
"""

import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from pydantic import ConfigDict

from slurm.axes import Axes, check_free, combinations, read_axes, suffix
from slurm.base import BaseOf, methods_to_run
from slurm.config_file import (
    NO_OTHER_KEYS,
    ConfigError,
    build,
    check_known,
    check_unique,
    read_toml,
)
from slurm.flags import Flag, Flags, arguments, parse_setting, read_flags, settings
from slurm.resources import Resources
from train.method.methods import METHODS
from train.model.image_scales import TIMM
from train.model.scales import all_scales, base_of, compute_steps, find_scale
from train.run.identity import identity, run_name

_TABLE = frozenset({"alignment_table", "maxp.alignment_table"})
_SHIPPED = Path("configs/sweeps")
_LONGEST_NAME = 200  # files beside a run's folder have longer names
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Sweep:
    """A validated sweep. The three mappings have an entry for each scale.

    Attributes:
        name: name of the sweep and of its folder.
        steps: steps per run; by default 20 tokens per non-embedding parameter, or the number that a
            scale of images has.
        flags: flags of `python -m train` by name; names have underscores.
        axes: further axes: the values of each flag by its name.
        resources: what each job requests.
    """

    name: str
    scales: tuple[str, ...]
    methods: tuple[str, ...]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: Mapping[str, int]
    flags: Mapping[str, Flags]
    resources: Mapping[str, Resources]
    axes: Axes = field(default_factory=dict)


@dataclass(frozen=True)
class RunSpec:
    """One run of a sweep.

    Attributes:
        name: unique in the sweep: ``s3_maxP_lr1e-02_seed1``.
        identity: hash of the configuration, by the trainer's rule.
        arguments: arguments of ``python -m train``, without ``--output-dir``.
        axes: value of each of the sweep's axes.
    """

    name: str
    identity: str
    scale: str
    method: str
    lr: float
    seed: int
    steps: int
    arguments: tuple[str, ...]
    resources: Resources
    axes: Mapping[str, Flag] = field(default_factory=dict)


def _of_file(metavar: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: the file's)")


@dataclass(frozen=True)
class Overrides:
    """Flags that replace keys of a sweep file."""

    scales: Annotated[tuple[str, ...] | None, _of_file("SCALE [SCALE ...]")] = None
    """Scales to run."""

    methods: Annotated[tuple[str, ...] | None, _of_file("METHOD [METHOD ...]")] = None
    """Methods to run."""

    lrs: Annotated[tuple[float, ...] | None, _of_file("LR [LR ...]")] = None
    """Learning rates to run."""

    seeds: Annotated[tuple[int, ...] | None, _of_file("SEED [SEED ...]")] = None
    """Seeds to run."""

    steps: Annotated[int | None, _of_file("STEPS")] = None
    """Steps of every run."""

    settings: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(name="set", metavar="FLAG=VALUE"),
    ] = ()
    """A flag of `python -m train`, such as training.local_batch_size=4; of an axis, the only value
    to run."""


@dataclass(frozen=True)
class _ScaleTable:
    """``[scale.NAME]``: settings of one scale."""

    steps: int | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    time: str | None = None
    flags: dict[str, Any] = field(default_factory=dict)

    __pydantic_config__: ClassVar[ConfigDict] = NO_OTHER_KEYS

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        self.resources(Resources())

    def resources(self, default: Resources) -> Resources:
        """``default`` with what this table sets."""
        own = {"nodes": self.nodes, "gpus_per_node": self.gpus_per_node, "time": self.time}
        return Resources(**(asdict(default) | {k: v for k, v in own.items() if v is not None}))


@dataclass(frozen=True)
class _File:
    """A sweep file."""

    scales: tuple[str, ...]
    methods: tuple[str, ...]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    name: str = ""
    steps: int | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, Any] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    scale: dict[str, _ScaleTable] = field(default_factory=dict)

    __pydantic_config__: ClassVar[ConfigDict] = NO_OTHER_KEYS

    def __post_init__(self) -> None:
        for key in ("scales", "methods", "lrs", "seeds"):
            check_unique(getattr(self, key), key)
        for scale in self.scales:
            if scale.startswith(TIMM):
                find_scale(scale, "scales:")
            else:
                check_known([scale], all_scales(), "scales")
        check_known(self.methods, METHODS, "methods")
        for lr in self.lrs:
            if not (lr > 0 and math.isfinite(lr)):
                raise ValueError(f"lrs: {lr}: must be positive")
        for seed in self.seeds:
            if seed < 0:
                raise ValueError(f"seeds: {seed}: must not be negative")
        _check_steps(self.steps)
        for scale in self.scale:
            if scale not in self.scales:
                raise ValueError(f"scale.{scale}: not one of scales: add it there, or remove it")
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name: {self.name!r}: use only letters, digits and . _ -, 200 at most"
            )


def load_sweep(path: str | Path, overrides: Overrides | Sequence[str] = ()) -> Sweep:
    """Read and validate a sweep file.

    Args:
        path: path of the TOML file.
        overrides: flags that replace its keys, or their command line, ``["--seeds", "1"]``.

    Raises:
        ConfigError: one line that names the file (or flag), the key and the remedy.
        SystemExit: the command line cannot be read.
    """
    if not isinstance(overrides, Overrides):
        overrides = tyro.cli(Overrides, args=list(overrides))
    path = Path(path)
    shipped = _SHIPPED / f"{path.stem}.toml"
    if not path.exists() and shipped.is_file():
        raise ConfigError(f"{path}: no such file: did you mean {shipped}?")
    table = {"name": path.stem, **read_toml(path)}
    file = build(_File, table, str(path))  # whole first: an override hides no mistake in it
    given = {k: v for k, v in asdict(overrides).items() if v is not None and k != "settings"}
    if given:
        scales = given.get("scales", file.scales)
        kept = {name: content for name, content in table.get("scale", {}).items() if name in scales}
        file = build(_File, {**table, **given, "scale": kept}, f"{path}, overridden by flags")
    return _resolve(file, overrides, str(path))


def expand(sweep: Sweep, base_of: BaseOf = base_of) -> list[RunSpec]:
    """All runs, ordered by scale, axes, learning rate, seed and method.

    Args:
        base_of: the default base of a scale; a scale that is its own base runs one method only.

    Raises:
        ConfigError: a run's name is too long for a folder.
    """
    points = [(point, suffix(point)) for point in combinations(sweep.axes)]
    runs = []
    for scale, (point, end) in product(sweep.scales, points):
        flags = sweep.flags[scale] | point
        methods = methods_to_run(scale, sweep.methods, flags, base_of)
        words = {method: tuple(arguments(_for_method(method, flags))) for method in methods}
        for lr, seed, method in product(sweep.lrs, sweep.seeds, methods):
            run: dict[str, Any] = {"scale": scale, "method": method, "lr": lr, "seed": seed}
            run["steps"] = sweep.steps[scale]
            line = (*arguments(run), *words[method])
            name = run_name(scale, method, lr, seed) + end
            if len(name) > _LONGEST_NAME:
                raise ConfigError(
                    f"axes: {name[:60]}...: is longer than a file name: use fewer axes"
                )
            runs.append(
                RunSpec(
                    **run,
                    name=name,
                    identity=identity(settings(line)),
                    arguments=line,
                    resources=sweep.resources[scale],
                    axes=point,
                )
            )
    return runs


def _for_method(method: str, flags: Flags) -> Flags:
    """``flags``, without the alignment table if the method takes none."""
    if METHODS[method].needs_table:
        return flags
    return {name: value for name, value in flags.items() if name not in _TABLE}


def _resolve(file: _File, overrides: Overrides, where: str) -> Sweep:
    common = read_flags(file.flags, f"{where}: flags")
    axes = read_axes(file.axes, f"{where}: axes")
    check_free(axes, common, "flags", where)
    _check_table_axis(file.methods, axes, where)
    last = read_flags(dict(map(parse_setting, overrides.settings)), "--set")
    axes = {name: [last.pop(name)] if name in last else values for name, values in axes.items()}
    steps, flags, resources = {}, {}, {}
    for scale in file.scales:
        own = file.scale.get(scale, _ScaleTable())
        chosen = overrides.steps or own.steps or file.steps
        steps[scale] = compute_steps(find_scale(scale)) if chosen is None else chosen
        here = read_flags(own.flags, f"{where}: scale.{scale}.flags")
        check_free(axes, here, f"scale.{scale}.flags", where)
        flags[scale] = common | here | last
        resources[scale] = own.resources(file.resources)
        _check_table(file.methods, {*flags[scale], *axes}, where)
    return Sweep(
        *(file.name, file.scales, file.methods, file.lrs, file.seeds),
        *(steps, flags, resources, axes),
    )


def _check_steps(steps: int | None) -> None:
    if steps is not None and steps < 1:
        raise ValueError(f"steps: {steps}: must be at least 1")


def _check_table(methods: Sequence[str], flags: Set[str], where: str) -> None:
    """Refuse a missing alignment table, and one that no method takes."""
    needing = [name for name in methods if METHODS[name].needs_table]
    if bool(needing) == bool(_TABLE & flags):
        return
    if needing:
        raise ConfigError(
            f"{where}: methods: {needing[0]} needs a table: set flags.alignment_table to a file "
            "of `python -m train.alignment_table`"
        )
    raise ConfigError(f"{where}: flags.alignment_table: no method here takes it: remove it")


def _check_table_axis(methods: Sequence[str], axes: Axes, where: str) -> None:
    """Refuse an axis of tables for a method that takes none: its runs would all be the same."""
    without = [name for name in methods if not METHODS[name].needs_table]
    if without and (names := _TABLE & axes.keys()):
        raise ConfigError(
            f"{where}: axes.{min(names)}: {without[0]} takes no table: give methods that do their "
            "own sweep file"
        )
