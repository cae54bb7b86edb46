"""Fixtures that many test files share; what they need is imported when they are first used."""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Read by torch when it is first imported. Models here are so small that threads only wait for each
# other, the longer the busier the machine is.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from train import torchvision_compat

torchvision_compat.install()  # before transformers or lightning import torchvision

LONGEST = ("test_docs", "test_kills", "test_meshes", "test_processes", "test_slurm_local")

if TYPE_CHECKING:
    from harness import Run
    from slurm_cluster import Cluster


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `pytest -n N --dist loadscope`: the tests of a file share a process and its fixtures.

    Those on Slurm are apart: they share only the Slurm of their process. This is not left to the
    mark `xdist_group`: pytest-xdist 3.8 renames tests for it in a way that pytest 9.2 does not see.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if on_slurm(file) else file

    @functools.cache
    def on_slurm(file: str) -> bool:
        return "pytest.mark.slurm" in (config.rootpath / file).read_text()

    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Longest and slow files first, tests on Slurm between them; exhaustive ones only if asked for.

    The longest are not left to one process at the end. Tests on Slurm mostly wait for it, so they
    leave the cores to the files beside them.
    """
    if "exhaustive" not in config.option.markexpr:
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
    slow = {item for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item not in slow, item.path.stem not in LONGEST))
    waiting = [[item] for item in items if item.get_closest_marker("slurm")]
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if not item.get_closest_marker("slurm"):
            files.setdefault(item.path, []).append(item)
    woven = zip_longest(waiting, files.values(), fillvalue=())
    items[:] = [item for pair in woven for group in pair for item in group]


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Commands set up logging and a signal for their whole process; later tests read both."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, on_sigterm)
    root.setLevel(level)
    for handler in set(root.handlers).difference(handlers):
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def corpus_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A MAXP_CACHE of this session that holds the embedded corpus."""
    from train.data.corpus import prepare_embedded

    base = tmp_path_factory.getbasetemp()
    # Processes of pytest-xdist have folders of their own in the session's; they share this one.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAXP_CACHE", str(folder))
        prepare_embedded()
        yield folder


def _tiny_run(tmp_path_factory: pytest.TempPathFactory, name: str, method: str, *more: str) -> Run:
    from harness import run, tiny

    done = run(tiny(tmp_path_factory.mktemp("runs") / name, method, *more))
    assert done.code == 0
    return done


@pytest.fixture(scope="session")
def maxp_run(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny run of method maxP."""
    return _tiny_run(tmp_path_factory, "maxP", "maxP")


@pytest.fixture(scope="session")
def mup_no_run(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same under mup-no."""
    return _tiny_run(tmp_path_factory, "mup-no", "mup-no")


@pytest.fixture(scope="session")
def sp_run(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same under sp."""
    return _tiny_run(tmp_path_factory, "sp", "sp")


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A two-node Slurm on this machine, started for the tests and stopped after them."""
    from slurm_cluster import MISSING, SKIP_REASON, running_cluster

    if MISSING:
        pytest.skip(SKIP_REASON)
    with running_cluster(tmp_path_factory.getbasetemp() / "slurm-log") as cluster:
        yield cluster


@pytest.fixture
def idle(slurm_cluster: Cluster) -> Iterator[Cluster]:
    """That Slurm, whose jobs are cancelled after the test."""
    yield slurm_cluster
    slurm_cluster.cancel_all()


@pytest.fixture(scope="session")
def uninterrupted(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny sweep's run, by itself and without Slurm."""
    import slurm_sweeps

    return slurm_sweeps.train(tmp_path_factory.mktemp("whole") / "run")
