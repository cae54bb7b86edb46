"""The trial on a small GPT: its arms, its file of runs, and the page that shows them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.gpt_trial import __main__ as command
from scripts.gpt_trial.report import curves, line, read_losses, summary
from scripts.gpt_trial.run import ARMS, Recipe, Run, build, train
from scripts.marked import fill

COMMITTED = command.PAGE.with_suffix("") / "runs.csv"


def test_the_page_has_the_numbers_of_the_committed_runs() -> None:
    page = command.PAGE.read_text()
    assert page == fill(page, "trial", {"summary": summary(curves(read_losses(COMMITTED)))})


def test_no_best_learning_rate_is_at_the_edge_of_its_grid() -> None:
    by_arm = curves(read_losses(COMMITTED))
    assert by_arm.keys() >= {*command.MAIN}
    assert {arm: of.at_edge for arm, of in by_arm.items()} == {arm: [] for arm in by_arm}


def test_the_standard_arm_has_one_learning_rate_and_the_models_own_deviations() -> None:
    model, p = build(Run("standard", 128, -6, 0), Recipe())
    assert {group["lr"] for group in p.param_groups} == {2.0**-6}
    assert {site.scale for site in p.sites.values()} == {1.0}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(module.in_features**-0.5, rel=0.02)


def test_at_the_bases_width_all_arms_with_a_base_are_the_same_run() -> None:
    losses = {train(Run(arm, 64, -6, 0), command.QUICK) for arm in ARMS if ARMS[arm].based}
    assert len(losses) == 1
    assert train(Run("standard", 64, -6, 1), command.QUICK) not in losses


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    recipe = Recipe(steps=100, warmup=10)
    factors = [recipe.factor(step) for step in (0, 9, 10, 55, 100)]
    assert factors == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])


def test_the_first_seeds_of_all_arms_come_before_the_others() -> None:
    planned = command.runs(5)
    assert len(planned) == len(set(planned)) == 15 * sum(len(arm.log2_lrs) for arm in ARMS.values())
    firsts = [run.seed < command.FIRST_SEEDS for run in planned]
    assert firsts == sorted(firsts, reverse=True)


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A quick trial that was killed while it wrote its second line."""
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["gpt_trial", "--quick"])
    file = tmp_path / "runs" / "gpt-trial-quick" / "runs.csv"
    file.parent.mkdir(parents=True)
    first, second = command.Options(quick=True).planned[:2]
    file.write_text("arm,width,log2_lr,seed,loss\n" + line(first, 9.5) + line(second, 1.5)[:-3])
    return file


def test_an_interrupted_trial_makes_the_runs_that_its_file_lacks(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def losses_of(todo: list[Run], *_: Any) -> Iterator[tuple[Run, float]]:
        made.extend(todo)
        yield from ((run, 2.0 + run.log2_lr**2) for run in reversed(todo))

    monkeypatch.setattr(command, "losses_of", losses_of)
    command.main()
    planned = command.Options(quick=True).planned
    assert made == planned[1:]
    losses = read_losses(interrupted)
    assert list(losses) == planned
    assert losses[planned[0]] == 9.5
    assert (interrupted.parent / "loss.png").exists()


def test_runs_in_another_process_give_the_same_losses() -> None:
    runs = [Run("maxP", 64, -6, 0), Run("mup-without-base", 64, -2, 0)]
    assert dict(command.losses_of(runs, command.QUICK, 1)) == {
        run: train(run, command.QUICK) for run in runs
    }


def test_a_line_that_is_no_run_is_named(interrupted: Path) -> None:
    interrupted.write_text("arm,width,log2_lr,seed,loss\nstandard,64\n")
    with pytest.raises(SystemExit, match=r"runs.csv, line 2: 'standard,64' is no run; delete it"):
        command.main()


@pytest.mark.parametrize(("name", "value"), [("processes", -1), ("seeds", 0)])
def test_bad_input_names_its_flag(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"--{name} {value}: must"):
        command.Options(**{name: value})


def made_up() -> dict[Run, float]:
    """The standard arm's best lr falls from 2^-6 to 2^-8; that of mup stays."""
    best = {("standard", 64): -6, ("standard", 256): -8, ("mup", 64): -6, ("mup", 256): -6}
    return {
        Run(arm, width, log2_lr, seed): 2.5 - width / 1000 + 0.1 * abs(log2_lr - at) + 0.02 * seed
        for (arm, width), at in best.items()
        for log2_lr in range(-9, -4)
        for seed in range(3)
    }


def test_the_table_has_best_carried_and_regret_of_each_arm() -> None:
    *_, standard, mup = summary(curves(made_up())).splitlines()
    # The mean of three seeds, which are 0.02 apart: 0.02 / sqrt(3) = 0.012.
    assert standard.split(" | ")[1:] == [
        "3", "2^-6, 2.456 ± 0.012", "2^-8, 2.264 ± 0.012", "2.464 ± 0.012", "0.200 ± 0.000",
        "0.200 ± 0.000 |",
    ]  # fmt: skip
    assert mup.split(" | ")[-2:] == ["0.000 ± 0.000", "0.000 ± 0.000 |"]


def test_a_seed_that_lacks_a_run_does_not_count() -> None:
    losses = made_up()
    del losses[Run("mup", 256, -5, 2)]
    assert {arm: of.seeds for arm, of in curves(losses).items()} == {"standard": 3, "mup": 2}


def test_a_learning_rate_at_which_a_seed_diverged_is_never_best() -> None:
    losses = made_up()
    losses[Run("mup", 256, -6, 1)] = math.nan
    assert curves(losses)["mup"].best(256) in (-7, -5)


@pytest.mark.parametrize(
    ("texts", "message"), [({}, "choose one of"), ({"a": "1", "b": "2"}, "no mark <!-- t: b -->")]
)
def test_a_page_and_its_tables_name_each_other(texts: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill("<!-- t: a --><!-- / -->", "t", texts)
