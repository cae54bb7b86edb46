"""What TensorBoard and W&B get: few charts at any scale, and one W&B run for all starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import Run, run, stop_at, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import checks
from train.charts import Charts, layer_types
from train.metrics import BaseLogger
from train.model.decoders import decoder_graph
from train.run.folder import read_config_file

ALIGNMENTS = ("align_z0_dW", "align_dZ_w0", "align_dZ_dW")


class Recorder(BaseLogger):
    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.logged.append(metrics)


def charts(metrics: dict[str, Any], types: dict[str, str], *, all_sites: bool) -> dict[str, Any]:
    """What is drawn of ``metrics``."""
    recorder = Recorder()
    Charts(recorder, Path("tb"), lambda: types, all_sites=all_sites).log(metrics, 1)
    return recorder.logged[0]


def test_of_several_sites_of_a_type_the_smallest_median_and_largest_value_are_drawn() -> None:
    metrics = {"sites/a/lr": 3.0, "sites/b/lr": 1.0, "sites/c/lr": 7.0, "sites/d/lr": 2.0, "x": 9.0}
    types = {"a": "hidden", "b": "hidden", "c": "hidden", "d": "readout"}
    assert charts(metrics, types, all_sites=False) == {
        "hidden/lr/min": 1.0,
        "hidden/lr/median": 3.0,
        "hidden/lr/max": 7.0,
        "readout/lr": 2.0,
        "x": 9.0,
    }


def test_at_s5_there_are_some_dozen_charts_instead_of_more_than_a_thousand() -> None:
    graph = decoder_graph("s5")
    metrics = {"sites/rest/lr": 1.0}
    for site in graph.sites:
        names = ("lr", "c") if site.has_weight else ()
        names += ALIGNMENTS if site.layer_type != "embedding" else ()
        metrics |= {f"sites/{site.name}/{name}": 1.0 for name in names}
    assert len(metrics) == 1224
    drawn = charts(metrics, layer_types(graph), all_sites=False)
    assert len(drawn) == 32
    assert {tag.split("/")[0] for tag in drawn} == {
        *("embedding", "hidden", "readout", "attention product", "rest"),
    }
    assert charts(metrics, layer_types(graph), all_sites=True) == metrics


def tags(folder: Path) -> set[str]:
    """The scalars in TensorBoard's files."""
    (events,) = (folder / "tb").glob("2*/events*")
    read = EventAccumulator(str(events.parent)).Reload()
    return set(read.Tags()["scalars"])


def test_a_run_draws_layer_types_and_records_every_site(maxp_run: Run) -> None:
    drawn = tags(maxp_run.folder)
    assert {"hidden/lr/median", "readout/c", "hidden/align_dZ_dW/max", "embedding/lr"} <= drawn
    assert not any("layers.0" in tag for tag in drawn)
    assert "layers.0.attention.wo" in maxp_run.steps[1]["sites"]


def test_all_sites_are_drawn_where_the_flag_asks_for_them(
    corpus_cache: Path, tmp_path: Path
) -> None:
    flags = ("--steps", "2", "--metrics.all-sites")
    done = run(tiny(tmp_path / "run", "mup-no", *flags))
    sites = done.steps[2]["sites"].items()
    drawn = tags(done.folder)
    assert {f"sites/{name}/{label}" for name, site in sites for label in site} <= drawn
    assert "hidden/lr/median" not in drawn


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str | None]]:
    """A package wandb that does nothing; the list gets what each start is named by."""
    starts: list[dict[str, str | None]] = []

    def init(**given: Any) -> None:
        named = {key: given[key] for key in ("id", "name", "group")}
        starts.append(named | {"resume": os.environ.get("WANDB_RESUME")})

    fake = SimpleNamespace(init=init, log=lambda *_, **__: None, run=None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(checks, "find_spec", lambda name: name)
    for name in ("WANDB_RUN_ID", "WANDB_RUN_NAME", "WANDB_RUN_GROUP", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)
    return starts


def test_a_run_that_is_resumed_is_one_run_of_wandb(
    wandb: list[dict[str, str | None]], corpus_cache: Path, tmp_path: Path
) -> None:
    arguments = tiny(tmp_path / "run", "mup-no", "--steps", "4", "--metrics.enable-wandb")
    assert run(arguments, before_step=stop_at(3)).code == 130
    assert run(arguments).code == 0
    number = read_config_file(tmp_path / "run")["id"]
    named = {"id": number, "name": "run", "group": "debug_mup-no"}
    assert wandb == [named | {"resume": "allow"}] * 2


def test_wandb_without_its_package_is_refused(
    corpus_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(tiny(tmp_path / "run", "mup-no", "--metrics.enable-wandb")).code == 2
    assert "--metrics.enable_wandb: the package wandb is not installed" in capsys.readouterr().err


def test_names_for_wandb_in_the_environment_are_kept(
    wandb: list[dict[str, str | None]],
    corpus_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = {"id": "mine", "name": "first", "group": "trials"}
    for key, value in mine.items():
        monkeypatch.setenv(f"WANDB_RUN_{key.upper()}", value)
    monkeypatch.setenv("WANDB_RESUME", "must")
    run(tiny(tmp_path / "run", "mup-no", "--steps", "1", "--metrics.enable-wandb"))
    assert wandb == [mine | {"resume": "must"}]
