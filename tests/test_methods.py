"""The methods, on real runs: where c starts, what it follows, and what a frozen table fixes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import STEPS, Run, run, tiny

from maxp import bounded
from train.alignment_table import export, read_table
from train.method.methods import METHODS, get_method
from train.method.settings import LrMultipliers, MaxPSettings, StdMultipliers

pytestmark = pytest.mark.usefixtures("corpus_cache")

FIRST_MEASURED = 4  # measure_from 1, solve_interval 3
HIDDEN = "layers.1.feed_forward.w1"


def test_the_methods_are_those_that_were_asked_for() -> None:
    assert set(METHODS) == {"maxP", "mup-full", "mup-no", "sp", "maxP-frozen"}


def test_maxp_starts_from_full_alignment_and_changes_c_after_measuring(maxp_run: Run) -> None:
    before, after = maxp_run.c[:FIRST_MEASURED], maxp_run.c[FIRST_MEASURED:]
    preset = {"tok_embeddings": 0.5, "lm_head": 0.5}
    for c in before:
        assert c == {site: preset.get(site, 1.0) for site in c}
    assert all(c[HIDDEN] != 1.0 for c in after)


def test_maxp_measures_every_site_that_contracts_something(maxp_run: Run) -> None:
    measured = maxp_run.trainer.parametrization.measured
    assert len(measured) == 2 * 8 + 1  # two layers and the head, not the embedding
    assert all(0 < value < 1.01 for values in measured.values() for value in values)


@pytest.mark.parametrize(
    ("method", "ends", "hidden"),
    [
        ("mup-full", {"tok_embeddings": 0.5, "lm_head": 0.5}, 1.0),
        ("mup-no", {"tok_embeddings": 0.5, "lm_head": 0.0}, 0.5),
    ],
)
def test_a_static_method_never_changes_c_even_when_it_measures(
    corpus_cache: Path, tmp_path: Path, method: str, ends: dict[str, float], hidden: float
) -> None:
    done = run(tiny(tmp_path / "run", method, "--steps", "6", "--maxp.measure"))
    assert len(done.c) == 6
    for c in done.c:
        assert c == {site: ends.get(site, hidden) for site in c}
    assert None not in done.trainer.parametrization.measured[HIDDEN]


def test_sp_steps_with_one_lr_everywhere(sp_run: Run) -> None:
    assert [len(set(lrs.values())) for lrs in sp_run.lrs] == [1] * STEPS


@pytest.mark.parametrize(
    ("method", "base", "embedding", "hidden", "readout"),
    [
        ("sp", "none", 1.0, 128**-0.5, 128**-0.5),
        ("mup-no", "none", 128**-0.5, 128**-0.5, 128**-0.5),
        ("sp", "debug-base", 1.0, 128**-0.5, 128**-0.5),
        ("mup-no", "debug-base", 4**-0.5, 128**-0.5, 128**-0.5),
        ("mup-no", "debug", 1.0, 128**-0.5, 128**-0.5),
    ],
)
def test_initial_weights_have_the_standard_deviation_sigma_m_to_the_minus_b(
    corpus_cache: Path,
    tmp_path: Path,
    method: str,
    base: str,
    embedding: float,
    hidden: float,
    readout: float,
) -> None:
    weights: dict[str, torch.Tensor] = {}

    def note(trainer: Any) -> None:
        for name, weight in trainer.parametrization.weights.items():
            weights[name] = weight.detach().clone()

    flags = ("--steps", "1", "--maxp.base_scale", base)
    run(tiny(tmp_path / "run", method, *flags), before_step=note)
    for name, expected in [
        ("tok_embeddings", embedding),
        ("layers.0.attention.wo", hidden),
        ("lm_head", readout),
    ]:
        assert float(weights[name].std()) == pytest.approx(expected, rel=0.02), name
        assert abs(float(weights[name].mean())) < 0.03 * expected


def test_norms_start_at_one(corpus_cache: Path, tmp_path: Path) -> None:
    gains: list[torch.Tensor] = []

    def note(trainer: Any) -> None:
        model = trainer.model_parts[0]
        gains.extend(p.detach().clone() for n, p in model.named_parameters() if "norm" in n)

    run(tiny(tmp_path / "run", "sp", "--steps", "1"), before_step=note)
    assert len(gains) == 5
    assert all(bool((gain == 1).all()) for gain in gains)


def test_an_unknown_method_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"--method mup: unknown; choose one of maxP, .*, sp"):
        get_method("mup")


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"method": "maxP-frozen"}, "--maxp.alignment-table"),
        ({"method": "mup-no", "alignment_table": "a.json"}, "--maxp.alignment-table"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": float("inf")}, "--lr"),
        ({"solve_interval": 0}, "--maxp.solve_interval"),
        ({"probe": "other"}, "--maxp.probe other: must be fresh or fixed"),
        ({"probe_tokens": 0}, "--maxp.probe_tokens"),
        ({"c_ema": 1.0}, "--maxp.c_ema"),
        ({"measure_from": -1}, "--maxp.measure_from"),
        ({"base_scale": "s9"}, "--maxp.base_scale s9: unknown; choose one of debug, "),
        ({"depth_exponent": -1.0}, "--maxp.depth_exponent -1.0: must be in"),
        (
            {"lr_multipliers": LrMultipliers(embedding=0)},
            "--maxp.lr_multipliers.embedding 0: must be positive",
        ),
        (
            {"std_multipliers": StdMultipliers(sites={"lm_head": -1})},
            "--maxp.std_multipliers.sites lm_head -1: must be positive",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_flag(settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValueError, match=f"^[^\n]*{flag}[^\n]*$"):
        MaxPSettings(**settings)


# maxP-frozen


@pytest.fixture(scope="module")
def table(maxp_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "alignment.json"
    export((maxp_run.folder,), path, first_step=STEPS // 2)
    return path


def frozen_run(table: Path, folder: Path, *more: str, scale: str = "debug") -> Run:
    flags = ("--alignment-table", str(table), "--steps", "6", *more)
    return run(tiny(folder, "maxP-frozen", *flags, scale=scale))


def test_a_frozen_table_holds_at_a_scale_of_another_width_and_depth(
    corpus_cache: Path, table: Path, tmp_path: Path
) -> None:
    done = frozen_run(table, tmp_path / "run", scale="cpu64")
    assert done.code == 0
    given = done.trainer.parametrization.alignment
    expected = read_table(str(table))
    for layer in range(4):
        for kind in ("attention.wo", "feed_forward.w1", "attention.qkv_linear.wk"):
            assert given[f"layers.{layer}.{kind}"] == bounded(expected[kind])
    assert given["lm_head"] == bounded(expected["lm_head"])


def test_a_frozen_table_is_taken_as_it_is_without_bounds(
    corpus_cache: Path, table: Path, tmp_path: Path
) -> None:
    done = frozen_run(table, tmp_path / "run", "--maxp.no-bounded")
    outside = {k: v for k, v in read_table(str(table)).items() if v[1] > 0.5 and "inner" not in k}
    assert outside
    for kind, values in outside.items():
        site = kind if kind == "lm_head" else f"layers.1.{kind}"
        assert tuple(done.trainer.parametrization.alignment[site]) == values


def test_a_frozen_site_is_never_measured_and_keeps_its_c(
    corpus_cache: Path, table: Path, tmp_path: Path
) -> None:
    done = frozen_run(table, tmp_path / "run", "--maxp.measure")
    assert all(c == done.c[0] for c in done.c)
    assert done.c[0][HIDDEN] not in (0.5, 1.0)
    measured = done.trainer.parametrization.measured
    assert set(measured) == {f"layers.{i}.attention.inner_attention" for i in (0, 1)}


def test_a_table_without_some_site_is_refused(
    corpus_cache: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(table.read_text())
    del content["alignment"]["feed_forward.w1"]
    (tmp_path / "part.json").write_text(json.dumps(content))
    assert frozen_run(tmp_path / "part.json", tmp_path / "run").code == 2
    assert "no alignment for layers.0.feed_forward.w1, layers.1" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "enters"), [((), False), (("--maxp.measure_bilinear",), True)])
def test_the_tables_alignment_of_q_times_k_enters_the_program_only_by_a_flag(
    corpus_cache: Path, table: Path, tmp_path: Path, flags: tuple[str, ...], enters: bool
) -> None:
    done = frozen_run(table, tmp_path / "run", "--steps", "1", *flags)
    given = done.trainer.parametrization.alignment["layers.1.attention.inner_attention"]
    in_table = read_table(str(table))["attention.inner_attention"]
    assert tuple(given) == (in_table if enters else (0.5, 0.5, 0.5))
