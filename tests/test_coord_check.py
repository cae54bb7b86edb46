"""The coordinate check of LLaMA-3: what it expects, what it reports, and what it refuses."""

import contextlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from maxp import ParametrizedModule
from maxp.diagnose.slopes import SiteStats, Slope
from maxp.exponents import AdjustLrFn
from scripts import coord_check
from scripts.coord_check import build_model, draw_batch, next_token_loss, worst_by_kind
from scripts.coord_derived import HeadSplit, derived_slopes, footnotes
from train.method.methods import get_method
from train.model.scales import get_scale

HIDDEN_KINDS = [
    "attention.qkv_linear.wq",
    "attention.qkv_linear.wk",
    "attention.qkv_linear.wv",
    "attention.inner_attention",
    "attention.wo",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
]
KINDS = ["tok_embeddings", *HIDDEN_KINDS, "lm_head"]
LAYERS = 4


@dataclass
class Checked:
    """One call of the command: its exit status, what it printed, and the files it wrote."""

    status: int
    output: str
    png: Path
    data: dict[str, Any]

    @property
    def rows(self) -> dict[str, str]:
        """The table's lines by site."""
        sites = self.data["sites"]
        lines = (line.split(maxsplit=1) for line in self.output.splitlines() if line.strip())
        return {first: rest[0] for first, *rest in lines if first in sites}

    def changes(self, kinds: list[str]) -> dict[str, float]:
        """Slopes of the change by site, of some kinds."""
        sites = self.data["sites"].items()
        return {n: s["change"]["mean"] for n, s in sites if n.endswith(tuple(kinds))}


def run_check(folder: Path, *flags: str) -> Checked:
    png, table = folder / "check.png", folder / "check.json"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("sys.argv", ["coord_check", *flags, f"--png={png}", f"--json={table}"])
        status = coord_check.main()
    return Checked(status, printed.getvalue(), png, json.loads(table.read_text()))


Fixture = pytest.TempPathFactory


@pytest.fixture(scope="module")
def mup(corpus_cache: Path, tmp_path_factory: Fixture) -> Checked:
    flags = ["--method", "mup-full", "--widths", "64", "256", "--seeds", "2"]
    return run_check(tmp_path_factory.mktemp("mup"), *flags)


@pytest.fixture(scope="module")
def sp(corpus_cache: Path, tmp_path_factory: Fixture) -> Checked:
    # So small an lr, since norms hide the growth of a change that is as large as its activation.
    flags = ["--method", "sp", "--widths", "64", "256", "--seeds", "2", "--all-sites"]
    return run_check(tmp_path_factory.mktemp("sp"), *flags, "--lr", "1e-4", "--steps", "1")


# What is reported


def test_the_table_has_a_row_for_every_kind_of_site(mup: Checked) -> None:
    kinds = {coord_check.kind(name) for name in mup.rows}
    assert kinds == set(KINDS)
    assert len(mup.rows) == len(KINDS)


def test_all_sites_has_a_row_for_every_site(sp: Checked) -> None:
    assert len(sp.rows) == LAYERS * len(HIDDEN_KINDS) + 2


def test_sp_is_reported_as_growing_at_every_site_but_the_embedding(sp: Checked) -> None:
    growing = {name for name, row in sp.rows.items() if "GROWS" in row}
    assert growing == set(sp.rows) - {"tok_embeddings"}
    assert min(sp.changes([*HIDDEN_KINDS, "lm_head"]).values()) > 0.5


def test_mup_full_does_not_grow(mup: Checked) -> None:
    # By number, since standard errors from two seeds may be much too small.
    slopes = mup.changes([*HIDDEN_KINDS, "tok_embeddings"])
    assert len(slopes) == LAYERS * len(HIDDEN_KINDS) + 1
    assert max(map(abs, slopes.values())) < 0.2
    assert mup.changes(["lm_head"])["lm_head"] < 0


def test_mups_readout_at_init_is_not_called_wrong(mup: Checked) -> None:
    head = mup.data["sites"]["lm_head"]
    assert head["init"]["mean"] == pytest.approx(-0.5, abs=0.05)
    assert "init" not in head["text"]


def test_a_change_of_the_readout_that_falls_is_explained_by_its_parts(mup: Checked) -> None:
    assert "falls" in mup.rows["lm_head"]
    assert "lm_head's change is the sum of two parts: one from its own update" in mup.output


def test_a_png_is_written(mup: Checked) -> None:
    assert mup.status == 0
    assert mup.png.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {mup.png}" in mup.output


def test_the_json_holds_every_rms_by_seed_and_width(mup: Checked) -> None:
    assert mup.data["method"] == "mup-full"
    assert len(mup.data["sites"]) == LAYERS * len(HIDDEN_KINDS) + 2
    assert np.shape(mup.data["sites"]["layers.3.attention.wo"]["change_rms"]) == (2, 2)


def test_the_largest_slope_of_a_kind_is_shown_or_one_whose_slope_is_lost() -> None:
    stats = {
        "layers.0.wo": site(change=0.1),
        "layers.1.wo": site(change=-0.3),
        "layers.0.w1": site(change=9.0),
        "layers.1.w1": site(change=math.nan),
        "layers.0.out": site(init=-0.5, wanted=-0.5),
        "layers.1.out": site(init=-0.3, wanted=-0.5),
    }
    assert worst_by_kind(stats) == ["layers.1.wo", "layers.1.w1", "layers.1.out"]


# What is expected


@pytest.mark.parametrize(
    ("name", "head_at_init", "elsewhere"),
    [("mup-full", -0.5, 0.0), ("mup-no", -0.5, 0.5), ("sp", 0.0, 1.0)],
)
def test_slopes_derived_for_llama(name: str, head_at_init: float, elsewhere: float) -> None:
    # Hidden, with update n^-c and all aligned: 1 - c, where c is 1, 1/2 and 0.
    method = get_method(name)
    _, parametrization = build_model(get_scale("cpu64"), method, 1e-2, 8)
    derived = derived_slopes(parametrization.graph, method.ab, parametrization.c)
    assert derived.pop("tok_embeddings") == (0.0, 0.0)
    assert derived.pop("lm_head") == (head_at_init, elsewhere)
    assert set(derived.values()) == {(0.0, elsewhere)}


@pytest.mark.parametrize(
    ("name", "fn", "hidden", "head"),
    [
        ("mup-full", "original", 0.0, 0.0),
        ("mup-full", "match_rms_adamw", 0.0, 0.0),
        ("sp", "original", 0.0, 1.0),
        ("sp", "match_rms_adamw", 0.5, 1.0),
    ],
)
def test_slopes_derived_for_muon(name: str, fn: AdjustLrFn, hidden: float, head: float) -> None:
    method = get_method(name)
    _, parametrization = build_model(get_scale("cpu64"), method, 1e-2, 8, fn)
    derived = derived_slopes(parametrization.graph, method.ab, parametrization.c, fn)
    assert {derived[f"layers.3.{kind}"][1] for kind in HIDDEN_KINDS} == {hidden}
    assert derived["lm_head"][1] == head


def test_a_change_is_inherited_where_it_is_steeper_than_what_an_update_adds() -> None:
    _, parametrization = build_model(get_scale("cpu64"), get_method("mup-full"), 1e-2, 8)
    c = parametrization.c | {"layers.1.attention.wo": 0.25}  # else 1
    derived = derived_slopes(parametrization.graph, get_method("mup-full").ab, c)
    assert derived["layers.1.attention.qkv_linear.wv"][1] == 0.0
    assert derived["layers.1.attention.wo"][1] == 0.75
    assert derived["layers.3.feed_forward.w2"][1] == 0.75
    assert derived["lm_head"][1] == 0.25  # through its initial weights, by n^-1/2


def test_the_model_has_the_learning_rates_and_multipliers_of_training() -> None:
    model, parametrization = build_model(get_scale("cpu64"), get_method("mup-full"), 1e-2, 8)
    lr = {group["name"]: group["lr"] for group in parametrization.param_groups}
    assert lr["layers.0.attention.wo"] == pytest.approx(1e-2 / 64)
    assert lr["layers.0.feed_forward.w2"] == pytest.approx(1e-2 / 224)
    assert lr["lm_head"] == lr["tok_embeddings"] == pytest.approx(1e-2 / 8)
    assert model.lm_head.scale == pytest.approx(1 / 8)
    assert model.layers["0"].attention.inner_attention.scale == pytest.approx(1 / 4)


def test_sp_has_one_learning_rate() -> None:
    _, parametrization = build_model(get_scale("cpu64"), get_method("sp"), 1e-2, 8)
    assert {group["lr"] for group in parametrization.param_groups} == {1e-2}


def test_the_loss_is_that_of_the_next_token() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [1.0, 1.0, 1.0]]]))
    tokens = torch.tensor([[0, 1, 2]])
    expected = -(math.log(0.25) + math.log(0.6)) / 2
    assert next_token_loss(logits, tokens).item() == pytest.approx(expected)


def test_a_batch_is_made_of_windows_of_the_corpus() -> None:
    torch.manual_seed(0)
    batch = draw_batch(np.arange(100, dtype=np.uint16), 50, 8).cpu()
    assert batch.shape == (50, 8)
    assert torch.equal(batch, batch[:, :1] + torch.arange(8))
    assert len(batch[:, 0].unique()) > 10


# Why slopes are not as derived


def test_the_heads_change_is_split_into_its_update_and_its_inputs_change() -> None:
    linear = nn.Linear(2, 1, bias=False)
    head = ParametrizedModule(linear, 4, "readout")  # scale 1/2
    split = HeadSplit()
    split.watch(4, head)
    weights = [[1.0, 2.0], [7.0, 7.0], [4.0, 5.0]]  # the second is on the way
    inputs = [[[1.0, 0.0], [2.0, 0.0]], [[5.0, 5.0], [5.0, 5.0]], [[1.0, 1.0], [2.0, 2.0]]]
    for w, z in zip(weights, inputs, strict=True):
        with torch.no_grad():
            linear.weight.copy_(torch.tensor([w]))
        head(torch.tensor(z))
    # dW = (3, 3): z0 dW = 3, 6. dz = (0, 1), (0, 2): dz W0 = 2, 4.
    own, read = split.rms[4][0]
    assert own == pytest.approx(0.5 * math.sqrt((9 + 36) / 2))
    assert read == pytest.approx(0.5 * math.sqrt((4 + 16) / 2))


def test_slopes_of_the_heads_parts_are_fitted_over_widths() -> None:
    split = HeadSplit()
    split.rms = {n: [(3.0, 8 * n**-0.5), (4.0, 9 * n**-0.5)] for n in (16, 64, 256)}
    own, read = split.slopes()
    assert own == pytest.approx((0.0, 0.0), abs=1e-12)
    assert read == pytest.approx((-0.5, 0.0), abs=1e-12)
    assert split.ratio(16) == pytest.approx(math.sqrt(2 / 3 * 9 / 16))


def site(
    *,
    init: float = 0.0,
    change: float = 0.0,
    derived: float = 0.0,
    wanted: float = 0.0,
    changed_by: float = 0.01,
    seeds: int = 4,
) -> SiteStats:
    rms = np.ones((seeds, 2))
    return SiteStats(
        rms,
        changed_by * rms,
        Slope(init, 0.0, wanted, wanted, 0.05),
        Slope(change, 0.0, derived, 0.0, 0.05),
    )


def notes(stats: dict[str, SiteStats]) -> str:
    return "\n".join(footnotes(stats, HeadSplit(), 128, every=True))


def test_nothing_is_explained_where_all_is_as_derived() -> None:
    assert notes({"w1": site(change=1.0, derived=1.0)}) == ""


def test_a_change_as_large_as_its_activation_is_said_to_be_bounded() -> None:
    text = notes({"w1": site(change=0.3, derived=1.0, changed_by=2.0)})
    assert "w1 by 2 times" in text
    assert "lower --lr" in text
    assert "128 tokens" not in text


def test_a_small_change_off_its_slope_is_laid_to_widths_and_tokens() -> None:
    text = notes({"w1": site(change=0.8, derived=1.0)})
    assert "128 tokens" in text
    assert "lower --lr" not in text


@pytest.mark.parametrize(("seeds", "said"), [(2, True), (4, False)])
def test_a_verdict_from_few_seeds_is_called_uncertain(seeds: int, said: bool) -> None:
    assert ("uncertain" in notes({"w1": site(change=0.8, seeds=seeds)})) is said


# What is refused


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--method", "maxP"], "--method maxP"),
        (["--method", "adamw"], "--method adamw"),
        (["--family", "gpu"], "--family gpu"),
        (["--widths", "64", "100"], "--widths 100"),
        (["--family", "w", "--widths", "64", "256"], "--widths 64"),
        (["--widths", "64", "64"], "--widths 64 64"),
        (["--steps", "0"], "--steps 0"),
        (["--seeds", "1"], "--seeds 1"),
        (["--sequences", "0"], "--sequences 0"),
        (["--seq-len", "1"], "--seq-len 1"),
        (["--lr", "nan"], "--lr nan"),
        (["--optimizer", "sgd"], "--optimizer sgd"),
        (["--optimizer", "muon", "--adjust-lr-fn", "rms"], "--adjust-lr-fn rms"),
        (["--adjust-lr-fn", "original"], "--adjust-lr-fn original"),
        (["--png", "nowhere/check.png"], "--png nowhere/check.png"),
        (["--png", "check.bmp"], "--png check.bmp"),
        (["--json", "check.txt"], "--json check.txt"),
    ],
)
def test_a_bad_flag_is_one_line_that_names_it(
    flags: list[str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["coord_check", *flags])
    monkeypatch.setattr(coord_check, "run", lambda options: pytest.fail("it ran"))
    assert coord_check.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {named}:")
    assert printed.err.count("\n") == 1


# Four widths


@pytest.fixture(scope="module")
def wide(corpus_cache: Path, tmp_path_factory: Fixture) -> Any:
    return lambda method, *flags: run_check(
        tmp_path_factory.mktemp(method), "--method", method, *flags
    )


@pytest.mark.slow
def test_under_mup_full_only_the_readouts_change_falls(wide: Any) -> None:
    checked = wide("mup-full")
    slopes = checked.changes([*HIDDEN_KINDS, "tok_embeddings"])
    assert max(map(abs, slopes.values())) < 0.1
    assert "GROWS" not in checked.output
    assert [name for name, row in checked.rows.items() if "falls" in row] == ["lm_head"]


@pytest.mark.slow
def test_small_changes_under_sp_have_the_derived_slope(wide: Any) -> None:
    few = ["--lr", "1e-5", "--steps", "1", "--sequences", "1", "--seq-len", "8"]
    slopes = wide("sp", *few).changes([*HIDDEN_KINDS, "lm_head"])
    assert len(slopes) == LAYERS * len(HIDDEN_KINDS) + 1
    assert min(slopes.values()) > 0.85
    assert max(slopes.values()) < 1.05


@pytest.mark.slow
def test_under_mup_no_changes_grow_less_than_under_sp(wide: Any) -> None:
    few = ["--lr", "1e-4", "--steps", "1", "--sequences", "1", "--seq-len", "8"]
    slopes = wide("mup-no", *few).changes(HIDDEN_KINDS)
    assert len(slopes) == LAYERS * len(HIDDEN_KINDS)
    assert min(slopes.values()) > 0.3
    assert max(slopes.values()) < 0.55


@pytest.mark.exhaustive
def test_under_muon_changes_of_hidden_sites_are_flat(wide: Any) -> None:
    slopes = wide("mup-full", "--optimizer", "muon", "--seeds", "20").changes(HIDDEN_KINDS)
    assert len(slopes) == LAYERS * len(HIDDEN_KINDS)
    assert max(map(abs, slopes.values())) < 0.05


@pytest.mark.exhaustive
def test_under_torchs_own_rule_for_muon_they_grow(wide: Any) -> None:
    flags = ["--optimizer", "muon", "--seeds", "4", "--widths", "64", "128", "256"]
    slopes = wide("sp", *flags).changes(HIDDEN_KINDS)
    assert len(slopes) == LAYERS * len(HIDDEN_KINDS)
    assert min(slopes.values()) > 0.2
