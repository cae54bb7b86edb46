"""Generated sweep and cluster files: each is accepted as a valid plan, or refused in one line."""

import datetime
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from generated import many
from hypothesis import given
from hypothesis import strategies as st

from slurm.cluster import Cluster, Container, load_cluster
from slurm.config_file import ConfigError
from slurm.resources import Resources
from slurm.sweep import expand, load_sweep
from train.method.methods import METHODS
from train.model.scales import SCALES, base_of

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
KEYS = TEXT | st.sampled_from(["str", "int", "list[int]", "a.b", "__proto__", "a\nb", "\0"])


@dataclass(frozen=True)
class Raw:
    """TOML as it is written."""

    text: str


HUGE = st.sampled_from(
    list(map(Raw, [f"{2**63}", f"-{2**70}", "1" + "0" * 400, "9" * 5000, "0x" + "f" * 5000]))
)
SCALAR = (
    *(TEXT, st.integers(-3, 9), st.floats(), st.booleans(), HUGE),
    st.sampled_from([datetime.date(2020, 1, 2), datetime.time(3, 4), "--lr", "a,b", "a\nb", "\0"]),
)
ANY = st.recursive(
    st.one_of(*SCALAR),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
TIMES = ["01:00:00", "1-00:00:00", "00:00:00", "٠١:00:00", "9" * 5000 + "-00:00:00", "1h"]
FLAGS = st.dictionaries(
    st.sampled_from(["training.seq_len", "training.seq-len", "--x", "x", "seed", "lr", "", "a b"])
    | KEYS,
    st.sampled_from([1, True, False, "a", ["a", "b"], [1, 2], 1e-3]) | ANY,
    max_size=3,
)
RESOURCES = {
    "nodes": st.integers(0, 3),
    "gpus_per_node": st.integers(0, 3),
    "time": st.sampled_from(TIMES),
}


def some(required: Mapping[str, Any], optional: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(dict(required), optional=dict(optional))


def several(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values, min_size=1, max_size=3, unique=True)


SWEEP = some(
    {
        "scales": several(st.sampled_from(["debug", "cpu64", *SCALES])),
        "methods": several(st.sampled_from([name for name in METHODS if name != "maxP-frozen"])),
        "lrs": several(st.floats(1e-6, 1) | st.sampled_from([0.01, 0.0, 1e300])),
        "seeds": several(st.integers(0, 5)),
    },
    {
        "name": st.sampled_from(["s1", "a" * 300, "../x", "a b"]) | TEXT,
        "steps": st.integers(0, 100),
        "flags": FLAGS,
        "resources": some({}, RESOURCES),
        "scale": some(
            {},
            {
                name: some({}, {**RESOURCES, "steps": st.integers(0, 9), "flags": FLAGS})
                for name in ("debug", "cpu64")
            },
        ),
    },
)
CLUSTER = some(
    {"kind": st.sampled_from(["slurm", "local"])},
    {
        "processes_per_node": st.integers(1, 4),
        "gpus_per_node": st.integers(0, 4),
        "mem_per_node": st.sampled_from(["1G", "٣G", "0", "1g"]),
        "account": st.just("a b") | TEXT,
        "gpu_type": st.just("h100") | TEXT,
        "max_time": st.sampled_from(TIMES),
        "mfu": st.floats(),
        "setup": st.lists(TEXT, max_size=2),
        "signal_lead_seconds": st.integers(-1, 4000),
        "container": some(
            {"kind": st.sampled_from(["pyxis", "apptainer"]), "image": st.just("i") | TEXT},
            {"mounts": st.lists(st.sampled_from(["/a:/b", "/a"]) | TEXT, max_size=2)},
        ),
        "sbatch": st.dictionaries(
            st.sampled_from(["exclusive", "--mem-bind", "mem_bind", "array", "", "a b"]) | KEYS,
            st.sampled_from([True, "x", 1]) | ANY,
            max_size=3,
        ),
        "runs_dir": st.just("/runs") | TEXT,
    },
)


def toml(value: Any) -> str:
    """A value in TOML, with tables written in one line."""
    match value:
        case bool():
            return str(value).lower()
        case Raw():
            return value.text
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case datetime.date() | datetime.time():
            return value.isoformat()
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return f"{{{', '.join(f'{toml(k)} = {toml(v)}' for k, v in value.items())}}}"
        case float() if math.isnan(value):
            return "nan"
        case _:
            return repr(value)


@st.composite
def files(draw: st.DrawFn, plausible: st.SearchStrategy[Any], keys: list[str]) -> str:
    """A plausible file, in about half of the cases with mistakes in it."""
    lines = [(key, toml(value)) for key, value in draw(plausible).items()]
    if draw(st.booleans()):
        known = st.sampled_from(keys)
        for key, value in draw(st.lists(st.tuples(known | KEYS, ANY), max_size=2)):
            lines.append((key, toml(value)))
        lines = [line for line in lines if draw(st.integers(0, 9))]
    text = "".join(f"{toml(key)} = {value}\n" for key, value in lines)
    if draw(st.integers(0, 19)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(TEXT | st.just("[" * 5000)) + text[at:]
    return text


SWEEP_KEYS = [
    *("scales", "methods", "lrs", "seeds", "steps"),
    "name",
    "flags",
    "resources",
    "scale",
]
CLUSTER_KEYS = [field.name for field in fields(Cluster)]
SWEEP_FILES = files(SWEEP, SWEEP_KEYS)
CLUSTER_FILES = files(CLUSTER, CLUSTER_KEYS)


def check_sweep(path: Path) -> None:
    sweep = load_sweep(path)
    runs = expand(sweep)
    at = {s: sweep.flags[s].get("maxp.base_scale", base_of(s)) for s in sweep.scales}
    # At its own base scale, all methods are one run.
    methods = sum(1 if base == scale else len(sweep.methods) for scale, base in at.items())
    count = methods * len(sweep.lrs) * len(sweep.seeds)
    assert len(runs) == len({run.name for run in runs}) == len({run.identity for run in runs})
    assert len(runs) == count > 0
    assert len(os.fsencode(sweep.name)) < 255
    assert re.fullmatch(r"[\w.-]+", sweep.name, re.ASCII)
    for run in runs:
        assert run.lr > 0
        assert run.steps > 0
        assert run.resources.nodes > 0
        assert run.resources.seconds > 0
        # Every flag stays one flag on the command line.
        flags = [word for word in run.arguments if word.startswith("--")]
        assert len(flags) == len(set(flags)) == 5 + len(sweep.flags[run.scale])
        assert all(re.fullmatch(r"--[\w.]+", flag, re.ASCII) for flag in flags)
        assert not any("\0" in word for word in run.arguments)


def check_cluster(path: Path) -> None:
    cluster = load_cluster(path)
    assert cluster.processes(Resources()) > 0
    assert cluster.kind == "local" or cluster.gpus_per_node or cluster.processes_per_node
    assert cluster.max_time is None or cluster.max_time.isascii()
    options = (cluster.account, cluster.partition, cluster.qos, cluster.constraint)
    options += (cluster.gpu_type, cluster.mem_per_gpu, cluster.mem_per_node, cluster.runs_dir)
    if isinstance(cluster.container, Container):
        options += (cluster.container.image, *cluster.container.mounts)
    # Each option stays one line of the batch script.
    for text in (*options, *map(str, cluster.sbatch), *map(str, cluster.sbatch.values())):
        assert text is None or text.isprintable()


def check(content: str, accept: Callable[[Path], None], known: list[str]) -> None:
    """Accepted as a valid plan, or refused by one line that names the file and a key or line."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_text(content, encoding="utf-8")
        try:
            accept(path)
        except ConfigError as error:
            message = str(error)
        else:
            return
    assert message.splitlines() == [message]
    assert message.startswith(f"{path}: ")
    mistake = message.removeprefix(f"{path}: ")
    try:
        keys = [*known, *(" ".join(key.splitlines()) for key in tomllib.loads(content))]
    except (ValueError, RecursionError):
        keys = ["not valid TOML"]
    assert mistake.startswith(tuple(keys))


@given(SWEEP_FILES)
@many(150)
def test_a_generated_sweep_is_a_plan_or_refused_in_one_line(content: str) -> None:
    check(content, check_sweep, SWEEP_KEYS)


@given(CLUSTER_FILES)
@many(150)
def test_a_generated_cluster_is_valid_or_refused_in_one_line(content: str) -> None:
    check(content, check_cluster, CLUSTER_KEYS)


@pytest.mark.slow
@given(SWEEP_FILES)
@many(1000)
def test_1000_generated_sweeps_are_plans_or_refused_in_one_line(content: str) -> None:
    check(content, check_sweep, SWEEP_KEYS)


@pytest.mark.slow
@given(CLUSTER_FILES)
@many(1000)
def test_1000_generated_clusters_are_valid_or_refused_in_one_line(content: str) -> None:
    check(content, check_cluster, CLUSTER_KEYS)
