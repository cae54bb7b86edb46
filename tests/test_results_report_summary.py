"""The HTML report's summary: the best lr, its basin, the regret of the carried lr, and gaps."""

from __future__ import annotations

from pathlib import Path

from fake_runs import write_run
from report_pages import rows

from train.results.collect import collect
from train.results.report import report


def test_the_summary_says_best_basin_regret_and_noise(tmp_path: Path) -> None:
    for scale, best in (("s1", 1e-2), ("s2", 1e-1)):
        for lr in (1e-3, 1e-2, 1e-1):
            for method, more in (("maxP", 0.0), ("mup-full", 0.25)):
                loss = 3.0 + more + (0.0 if lr == best else 0.5)
                write_run(tmp_path, scale=scale, method=method, lr=lr, validation=loss)
    page = report(collect(tmp_path), "t")
    first, *_, last = rows(page, "validation-summary")
    # 0.05 of 0.5 nats a decade: 0.1 decades a side; open above in s2, where the grid ends.
    assert first == ["s1", "maxP", "3.0000 n = 1", "1e-2", "–", "–", "–", "0.20"]
    assert last[:4] == ["s2", "mup-full", "3.2500 n = 1", "1e-1 highest lr of the grid"]
    assert last[4:] == ["3.7500", "1e-2 from s1", "0.5000 one seed, no interval", "≥ 0.10"]
    assert rows(page, "validation-gaps") == [
        ["s1", "-0.2500 too few seeds to tell (n = 1)"],
        ["s2", "-0.2500 too few seeds to tell (n = 1)"],
    ]


def test_the_regret_of_the_carried_lr_has_its_interval(tmp_path: Path) -> None:
    """Differences 0.1, 0.2, 0.6: mean 0.3, s 0.26458; t of 2 degrees of freedom is 4.302653."""
    write_run(tmp_path, scale="s1", lr=1e-2, validation=3.0)
    for seed, difference in enumerate([0.1, 0.2, 0.6]):
        for lr, more in ((1e-2, difference), (1e-1, 0.0)):
            write_run(tmp_path, scale="s2", lr=lr, seed=seed, validation=2.0 + more)
    *_, row = rows(report(collect(tmp_path), "t"), "validation-summary")
    assert row[4:7] == ["2.3000", "1e-2 from s1", "0.3000 95% -0.3572 to 0.9572, n = 3"]


def test_a_carried_lr_that_diverged_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, scale="s1", lr=1e-1, validation=3.0)
    write_run(tmp_path, scale="s2", lr=1e-2, validation=2.0)
    write_run(tmp_path, scale="s2", lr=1e-1, state="diverged")
    *_, row = rows(report(collect(tmp_path), "t"), "validation-summary")
    assert row[4:7] == ["–", "1e-1 from s1", " diverged at that lr"]


def test_methods_are_compared_with_both_references(tmp_path: Path) -> None:
    for method, losses in {
        "maxP": [3.0, 3.5],
        "mup-full": [3.5, 4.0],
        "mup-no": [3.25, 3.5],
    }.items():
        for seed, loss in enumerate(losses):
            write_run(tmp_path, method=method, seed=seed, validation=loss)
    page = report(collect(tmp_path), "t")
    head = "maxP - mup-full", "mup-no - mup-full", "maxP - mup-no"
    positions = [page.index(f"<button>{name}</button>") for name in head]
    assert positions == sorted(positions)
    # The standard deviation of two numbers is their difference over the square root of 2.
    assert rows(page, "validation-gaps") == [
        [
            "s1",
            "-0.5000 beyond one std (0.3536, n = 2)",
            "-0.3750 beyond one std (0.3536, n = 2)",
            "-0.1250 within one std (0.3536, n = 2)",
        ]
    ]
