"""``[axes]`` of a sweep file: any flag as a further axis."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_sweep import BASIC, GPUS, sweep, value_of

from slurm import preflight
from slurm.cluster import Cluster
from slurm.config_file import ConfigError
from slurm.estimate import estimate
from slurm.ledger import SWEEP, SweepFolder
from slurm.show import as_record
from slurm.states import survey
from slurm.sweep import expand

AXES = """
[axes]
maxp.solve_interval = [1, 10]
"training.max-norm" = [0.5, 1, 2.0]
"""


def test_axes_form_the_product_with_everything_else(tmp_path: Path) -> None:
    runs = expand(sweep(tmp_path, BASIC + AXES))
    got = [(r.scale, r.method, r.lr, r.seed, *r.axes.values()) for r in runs]
    scales, methods = ("debug", "cpu128"), ("maxP", "mup-no")
    expected = itertools.product(scales, methods, (0.01, 0.025), (1, 2), (1, 10), (0.5, 1, 2.0))
    assert sorted(got) == sorted(expected)
    assert len({r.name for r in runs}) == len({r.identity for r in runs}) == 96
    assert {tuple(r.axes) for r in runs} == {("maxp.solve_interval", "training.max_norm")}


def test_the_command_line_has_the_flag_of_each_axis(tmp_path: Path) -> None:
    for run in expand(sweep(tmp_path, BASIC + AXES)):
        assert value_of(run.arguments, "--maxp.solve_interval") == str(
            run.axes["maxp.solve_interval"]
        )
        assert value_of(run.arguments, "--training.max_norm") == str(run.axes["training.max_norm"])


def test_a_name_ends_with_the_last_part_of_each_flag_and_its_value(tmp_path: Path) -> None:
    names = [run.name for run in expand(sweep(tmp_path, BASIC + AXES))]
    assert names[0] == "debug_maxP_lr1e-02_seed1_solve_interval1_max_norm0.5"
    assert names[-1] == "cpu128_mup-no_lr0.025_seed2_solve_interval10_max_norm2"


def test_axes_that_end_alike_have_their_whole_flag_in_the_name(tmp_path: Path) -> None:
    text = BASIC + '[axes]\n"a.b.x" = [1]\n"a.c.x" = [2]\n'
    assert expand(sweep(tmp_path, text))[0].name.endswith("_seed1_a.b.x1_a.c.x2")


def test_values_that_no_file_name_can_hold_stay_apart_in_names(tmp_path: Path) -> None:
    text = BASIC + '[axes]\ndataset_path = ["a/b", "a_b", "a b", true, [1, 2]]\n'
    runs = expand(sweep(tmp_path, text))
    assert len({run.name for run in runs}) == len(runs) == 16 * 5
    assert not any(set(run.name) & set("/ ,[]") for run in runs)


def test_runs_of_a_sweep_without_axes_keep_name_and_identity(tmp_path: Path) -> None:
    """The values are those of the first version with sweeps."""
    run = expand(sweep(tmp_path, BASIC))[0]
    assert (run.name, run.identity) == ("debug_maxP_lr1e-02_seed1", "a95bd23e0fc81228")


def test_an_axis_of_one_value_is_the_same_experiment_as_the_flag(tmp_path: Path) -> None:
    axis = expand(sweep(tmp_path, BASIC + "[axes]\ntraining.max_norm = [2]"))
    flag = expand(sweep(tmp_path, BASIC + "[flags]\ntraining.max_norm = 2"))
    assert [run.identity for run in axis] == [run.identity for run in flag]


def test_set_replaces_an_axis_by_one_value_and_keeps_its_runs_names(tmp_path: Path) -> None:
    whole = {run.name: run for run in expand(sweep(tmp_path, BASIC + AXES))}
    chosen = expand(sweep(tmp_path, BASIC + AXES, "--set", "training.max_norm=0.5"))
    assert len(chosen) == 32
    assert all(whole[run.name] == run for run in chosen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[axes]\nx = 1", "axes.x: 1: write a list of values"),
        ("[axes]\nx = []", "axes.x: empty: give at least one"),
        ("[axes]\nx = [1, 2, 1]", "axes.x: 1 is there twice: remove one"),
        ("[axes]\nx = [1, 1.0]", "axes.x: 1 is there twice: remove one"),
        ('[axes]\nx = [1, "1"]', "axes.x: 1 is there twice: remove one"),
        ("[axes]\na-b = [1]\na_b = [2]", "axes.a_b: is there twice: remove one"),
        ("[axes]\nlr = [1]", "axes.lr: is set by the sweep: use lrs"),
        ("[axes]\nmaxp.method = ['sp']", "axes.maxp.method: is set by the sweep: use methods"),
        ("[axes]\n'a b' = [1]", "axes.a b: is no name of a flag"),
        ("[axes]\nx = ['--lr']", "axes.x: '--lr' would be read as a flag"),
        ("[axes]\nx = [{}]", "axes.x: holds a table: write text, numbers"),
        ("[axes]\nx = [[[1]]]", "axes.x: [[1]]: must be text, a number"),
        ("[flags]\nx = 3\n[axes]\nx = [1, 2]", "axes.x: [flags] sets it too: remove one"),
        (
            "[axes]\nx = [1, 2]\n[scale.debug.flags]\nx = 3",
            "axes.x: [scale.debug.flags] sets it too: remove one",
        ),
        (
            "[axes]\nalignment_table = ['a', 'b']",
            "axes.alignment_table: maxP takes no table: give methods that do their own sweep file",
        ),
        (f"[axes]\n{'x' * 240} = [1]", "is longer than a file name: use fewer axes"),
    ],
)
def test_a_mistaken_axis_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        expand(sweep(tmp_path, BASIC + text))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_axis_may_list_tables_where_all_methods_take_one(tmp_path: Path) -> None:
    text = BASIC.replace('"maxP", "mup-no"', '"maxP-frozen"')
    runs = expand(sweep(tmp_path, text + "[axes]\nalignment_table = ['a.json', 'b.json']"))
    assert {value_of(run.arguments, "--alignment_table") for run in runs} == {"a.json", "b.json"}


HERE = Cluster(name="here", kind="local", processes_per_node=1)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (
            "maxp.solve_intervall = [1, 2]",
            "axes.maxp.solve_intervall: no flag of `python -m train`",
        ),
        (
            'maxp.solve_interval = [1, "often"]',
            "axes.maxp.solve_interval: often: --maxp.solve-interval: invalid literal for int()",
        ),
        ("maxp.solve_interval = [1, 0]", "--maxp.solve_interval 0: must be at least 1"),
    ],
)
def test_an_axis_that_the_trainer_refuses_is_one_line(
    tmp_path: Path,
    corpus_cache: Path,
    capsys: pytest.CaptureFixture[str],
    axis: str,
    message: str,
) -> None:
    loaded = sweep(tmp_path, BASIC + f"[axes]\ntraining.max_norm = [1, 2]\n{axis}")
    with pytest.raises(ConfigError) as refused:
        preflight.check(expand(loaded), HERE)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capsys.readouterr() == ("", "")


def test_the_trainer_takes_every_value_of_good_axes(tmp_path: Path, corpus_cache: Path) -> None:
    preflight.check(expand(sweep(tmp_path, BASIC + AXES)), HERE)


def test_the_folder_of_a_sweep_keeps_the_axes(tmp_path: Path) -> None:
    runs = expand(sweep(tmp_path, BASIC + AXES))
    folder = SweepFolder(tmp_path / "mine")
    with folder.lock():
        folder.enter("mine", runs)
    assert folder.runs() == runs
    record = as_record(folder, survey(folder, runs[:1])[0])
    assert record["axes"] == {"maxp.solve_interval": 1, "training.max_norm": 0.5}
    assert json.loads(json.dumps(record)) == record


def test_a_folder_of_an_earlier_version_has_no_axes(tmp_path: Path) -> None:
    runs = expand(sweep(tmp_path, BASIC))
    folder = SweepFolder(tmp_path / "mine")
    with folder.lock():
        folder.enter("mine", runs)
    content = json.loads((folder.path / SWEEP).read_text())
    for run in content["runs"]:
        del run["axes"]
    (folder.path / SWEEP).write_text(json.dumps(content))
    assert folder.runs() == runs


def test_the_estimate_is_the_mean_over_the_axes(tmp_path: Path) -> None:
    text = BASIC.replace('"debug", "cpu128"', '"s2"')
    text += "[axes]\ntraining.global_batch_size = [64, 192]"
    loaded = sweep(tmp_path, text, "--steps", "10")
    [only] = estimate(loaded, expand(loaded), GPUS, {"s2": 1000.0})
    assert only.hours == pytest.approx(10 * 128 * 2048 / (8 * 1000) / 3600)
    assert only.runs == 16


def test_predicted_hours_know_how_often_each_run_solves(tmp_path: Path) -> None:
    text = BASIC.replace('"debug", "cpu128"', '"s2"').replace(', "mup-no"', "")
    both = sweep(tmp_path, text + "[axes]\nmaxp.solve_interval = [1, 100]", "--steps", "1000")
    [mean] = estimate(both, expand(both), GPUS, {})
    each = []
    for interval in (1, 100):
        one = replace(both, axes={"maxp.solve_interval": [interval]})
        each += [e.hours or 0.0 for e in estimate(one, expand(one), GPUS, {})]
    assert each[0] > each[1]
    assert mean.hours == pytest.approx(sum(each) / 2)


# A base scale


def methods_at(
    tmp_path: Path, text: str, scale: str, methods: str = '"maxP", "mup-no"'
) -> set[str]:
    loaded = sweep(tmp_path, BASIC.replace('"maxP", "mup-no"', methods) + text)
    bases = {"debug": "cpu128", "cpu128": "cpu128"}
    return {run.method for run in expand(loaded, bases.get) if run.scale == scale}


def test_where_a_scale_is_its_own_base_a_sweep_runs_one_method(tmp_path: Path) -> None:
    assert methods_at(tmp_path, "", "cpu128") == {"mup-no"}
    assert methods_at(tmp_path, "", "debug") == {"maxP", "mup-no"}
    whole = {run.name: run for run in expand(sweep(tmp_path, BASIC))}
    once = expand(sweep(tmp_path, BASIC), {"cpu128": "cpu128"}.get)
    assert len(once) == 12
    assert all(whole[run.name] == run for run in once)


@pytest.mark.parametrize(
    ("methods", "chosen"),
    [
        ('"maxP", "sp", "mup-no"', "sp"),
        ('"maxP"', "maxP"),
        ('"maxP", "maxP-frozen", "mup-no"', "mup-no"),
        ('"maxP", "maxP-frozen"', "maxP-frozen"),
    ],
)
def test_the_method_at_the_base_is_static_and_needs_no_table_if_possible(
    tmp_path: Path, methods: str, chosen: str
) -> None:
    table = "[flags]\nalignment_table = 't.json'" if "frozen" in methods else ""
    assert methods_at(tmp_path, table, "cpu128", methods) == {chosen}


def test_the_flag_for_the_base_scale_wins_over_the_scales_default(tmp_path: Path) -> None:
    both = {"maxP", "mup-no"}
    assert methods_at(tmp_path, '[flags]\nmaxp.base_scale = "none"', "cpu128") == both
    assert methods_at(tmp_path, '[flags]\nmaxp.base_scale = "debug"', "cpu128") == both
    assert methods_at(tmp_path, '[flags]\nmaxp.base_scale = "debug"', "debug") == {"mup-no"}
    own = '[scale.debug.flags]\n"maxp.base-scale" = "debug"'
    assert methods_at(tmp_path, own, "debug") == {"mup-no"}


def test_an_axis_over_the_base_scale_is_shared_at_its_own_scale_only(tmp_path: Path) -> None:
    text = BASIC + '[axes]\nmaxp.base_scale = ["none", "debug"]'
    runs = [run for run in expand(sweep(tmp_path, text)) if run.scale == "debug"]
    methods = {
        base: {run.method for run in runs if run.axes["maxp.base_scale"] == base}
        for base in ("none", "debug")
    }
    assert methods == {"none": {"maxP", "mup-no"}, "debug": {"mup-no"}}
