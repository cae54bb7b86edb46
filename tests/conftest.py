"""Fixtures that many test files share; what they need is imported when they are first used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness import Run
    from slurm_cluster import Cluster


@pytest.fixture(scope="session")
def corpus_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A MAXP_CACHE of this session that holds the embedded corpus."""
    from train.data.corpus import prepare_embedded

    folder = tmp_path_factory.mktemp("cache")
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
def slurm_cluster() -> Iterator[Cluster]:
    """A two-node Slurm on this machine, started for the tests and stopped after them."""
    from slurm_cluster import MISSING, SKIP_REASON, running_cluster

    if MISSING:
        pytest.skip(SKIP_REASON)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def idle(slurm_cluster: Cluster, corpus_cache: Path) -> Iterator[Cluster]:
    """That Slurm, whose jobs end with the test."""
    from slurm_sweeps import none_left

    with none_left(slurm_cluster) as cluster:
        yield cluster


@pytest.fixture
def uninterrupted(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny sweep's run, by itself and without Slurm; made once."""
    import slurm_sweeps

    return slurm_sweeps.uninterrupted(tmp_path_factory.getbasetemp())
