"""Runs with ``--optimizer muon``: two optimizers in one run, one checkpoint and one table."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_runs import write_run
from harness import STEPS, Run, run, stop_at, tiny
from image_runs import tiny_images
from test_sweep import BASIC, sweep, value_of
from torch.optim.lr_scheduler import LambdaLR
from torchtitan.components.optimizer import default_adamw
from torchtitan.distributed.flex_shard import dist_muon as dist_muon_module

from maxp import Graph, SiteNode, avx2
from maxp.factors import Factors
from maxp.shards import local
from slurm.sweep import expand
from train.alignment_table import export
from train.cli import parse, record
from train.config import Flags, make_config
from train.method.learning_rates import SiteGroups
from train.method.methods import METHODS
from train.method.optimizers import SiteDistMuon, build_muon, with_muon
from train.method.settings import MaxPSettings
from train.model import costs, image_costs
from train.model.image_scales import IMAGE_SCALES
from train.model.scales import get_scale
from train.results.analysis import Results
from train.results.collect import collect
from train.run.identity import differences, identity
from train.trainer import MaxPTrainer

pytestmark = pytest.mark.usefixtures("corpus_cache")

MUON = ("--optimizer", "muon")
SAVED = ("--checkpoint.enable", "--checkpoint.interval", "8")
M = 4
"""n / n_base of every site of the debug scale."""


def tiny_muon(folder: Path, method: str, *more: str, scale: str = "debug") -> list[str]:
    return tiny(folder, method, *MUON, *more, scale=scale)


@pytest.fixture(scope="module")
def whole(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that measures and solves, with checkpoints."""
    return run(tiny_muon(tmp_path_factory.mktemp("muon") / "run", "maxP", *SAVED))


def test_muon_trains_the_matrices_of_hidden_sites_and_adamw_all_else(whole: Run) -> None:
    muon, adamw = whole.trainer.optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    kinds = {".".join(g["name"].split(".")[2:]) for g in muon.param_groups}
    attention = {f"attention.qkv_linear.w{p}" for p in "qkv"} | {"attention.wo"}
    assert kinds == attention | {f"feed_forward.w{i}" for i in (1, 2, 3)}
    assert len(muon.param_groups) == 2 * 7
    assert {g["name"] for g in adamw.param_groups} == {"tok_embeddings", "lm_head", "rest"}


def end_by_exception(arguments: list[str]) -> None:
    run(arguments, before_step=stop_at(12))


def end_by_sigkill(arguments: list[str]) -> None:
    process = multiprocessing.get_context("forkserver").Process(
        target=_run_until_killed, args=(dict(os.environ), arguments)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _run_until_killed(environment: dict[str, str], arguments: list[str]) -> None:
    def kill(trainer: MaxPTrainer) -> None:
        if trainer.step == 12:
            os.kill(os.getpid(), signal.SIGKILL)

    os.environ.update(environment)
    run(arguments, before_step=kill)


@pytest.mark.parametrize("end", [end_by_exception, end_by_sigkill])
def test_a_run_with_muon_resumes_bit_for_bit_with_the_state_of_both_optimizers(
    end: Callable[[list[str]], None], whole: Run, tmp_path: Path
) -> None:
    """Ended at step 12, after the checkpoint of step 8 and the measurement of step 10."""
    arguments = tiny_muon(tmp_path / "run", "maxP", *SAVED)
    end(arguments)
    again = run(arguments)
    assert again.code == 0
    assert len(again.c) == STEPS - 8
    assert again.losses == whole.losses
    assert again.validation_losses == whole.validation_losses
    assert [r["sites"] for r in again.steps.values()] == [r["sites"] for r in whole.steps.values()]
    states = [run.trainer.optimizers.state_dict() for run in (again, whole)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[1].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(local(states[0][key]), local(value)), key
        else:
            assert states[0][key] == value, key
    assert any("momentum_buffer" in key for key in states[0])
    assert any("exp_avg_sq" in key for key in states[0])


@pytest.fixture(scope="module")
def table(whole: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("table") / "table.json"
    export([whole.folder], first_step=4, to=file)
    return file


@pytest.fixture(scope="module")
def at_base(corpus_cache: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Method -> its run of 20 steps at the base scale."""

    def one(method: str) -> Run:
        with_table = ("--alignment-table", str(table)) if METHODS[method].needs_table else ()
        folder = tmp_path_factory.mktemp("base") / "run"
        flags = ("--steps", "20", *with_table)
        return run(tiny_muon(folder, method, *flags, scale="debug-base"))

    return {method: one(method) for method in METHODS}


def test_at_the_base_scale_every_method_with_muon_is_the_same_run(at_base: dict[str, Run]) -> None:
    losses = {method: done.losses for method, done in at_base.items()}
    assert [len(values) for values in losses.values()] == [20] * len(METHODS)
    assert all(values == losses["sp"] for values in losses.values())
    assert losses["sp"][-1] < losses["sp"][0] - 0.5


@pytest.mark.parametrize(("method", "readout"), [("mup-full", 0.5), ("mup-no", 0.0)])
def test_the_lr_of_muons_sites_falls_with_the_root_of_the_width(
    tmp_path: Path, method: str, readout: float
) -> None:
    done = run(tiny_muon(tmp_path / "run", method, "--steps", "1"))
    (step,) = done.steps.values()
    lrs = {name: site["lr"] for name, site in step["sites"].items() if "lr" in site}
    first = lrs.pop("rest")
    c = {"lm_head": readout}
    assert lrs == pytest.approx({name: first * M ** -c.get(name, 0.5) for name in lrs})


def test_with_the_original_scale_the_lr_of_muons_sites_is_one_at_every_width(
    tmp_path: Path,
) -> None:
    flags = ("--maxp.adjust_lr_fn", "original", "--steps", "1")
    done = run(tiny_muon(tmp_path / "run", "mup-full", *flags))
    muon, _ = done.trainer.optimizers
    assert {group["adjust_lr_fn"] for group in muon.param_groups} == {"original"}
    assert {group["initial_lr"] for group in muon.param_groups} == {1e-2}


def test_muon_in_a_run_multiplies_in_float32_where_bfloat16_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(avx2, "is_slow", lambda: True)
    monkeypatch.setattr(avx2, "_is_bfloat16_on_cpu", lambda x: not asked.append(x))
    assert run(tiny_muon(tmp_path / "run", "mup-full", "--steps", "1")).code == 0
    assert {x.dtype for x in asked} == {torch.bfloat16}


def test_lr_multipliers_hidden_gives_muons_sites_an_lr_of_their_own(tmp_path: Path) -> None:
    flags = ("--maxp.lr_multipliers.hidden", "20", "--steps", "1")
    done = run(tiny_muon(tmp_path / "run", "mup-full", *flags))
    muon, adamw = done.trainer.optimizers
    assert [g["initial_lr"] for g in muon.param_groups] == pytest.approx([1e-2 * 20 * M**-0.5] * 14)
    lrs = {g["name"]: g["initial_lr"] for g in adamw.param_groups}
    assert lrs == pytest.approx(
        {"tok_embeddings": 1e-2 * M**-0.5, "lm_head": 1e-2 * M**-0.5, "rest": 1e-2}
    )


@pytest.mark.parametrize("scale", ["vit-debug", "mlp-debug"])
def test_an_image_classifier_trains_with_muon(tmp_path: Path, scale: str) -> None:
    """The patch embedding's weight is no matrix, and no hidden site."""
    done = run(tiny_images(tmp_path / "run", "maxP", *MUON, "--steps", "5", scale=scale))
    assert done.code == 0
    muon, adamw = done.trainer.optimizers
    hidden = {group["name"] for group in muon.param_groups}
    graph = done.trainer.parametrization.graph
    assert hidden == {s.name for s in graph.sites if s.layer_type == "hidden" and s.has_weight}
    assert len(done.losses) == 5
    assert hidden.isdisjoint(group["name"] for group in adamw.param_groups)


def test_the_predicted_memory_is_that_of_the_optimizers_states(whole: Run) -> None:
    states = [state for o in whole.trainer.optimizers for state in o.state.values()]
    tensors = [value for state in states for value in state.values()]
    assert costs.memory(get_scale("debug"), muon=True).optimizer == sum(t.nbytes for t in tensors)


def test_the_predicted_memory_of_images_has_one_moment_where_muon_trains() -> None:
    scale = IMAGE_SCALES["mlp-debug"]  # one hidden matrix
    spared = image_costs.trained_bytes(scale) - image_costs.trained_bytes(scale, muon=True)
    assert spared == 4 * scale.dim**2


def test_muons_eps_is_left_as_it_is_where_adams_follows_the_gradient() -> None:
    w, v = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    muon = torch.optim.Muon([{"params": [w]}], eps=1e-7)
    adamw = torch.optim.AdamW([{"params": [v]}], eps=1e-8)
    groups = SiteGroups([muon, adamw], {"w": w, "v": v}, rest="rest", follow=["eps"])
    groups.set_factors({"w": Factors(1, 1, 0.5), "v": Factors(1, 1, 0.5)})
    assert muon.param_groups[0]["eps"] == 1e-7
    assert adamw.param_groups[0]["eps"] == 0.5e-8


# Sharded weights, without a GPU: what torchtitan's class plans with its devices is left out


@pytest.fixture
def dist_muon(monkeypatch: pytest.MonkeyPatch) -> SiteDistMuon:
    """Muon on two weights that the axis ``fsdp`` shards."""
    monkeypatch.setattr(dist_muon_module, "_initialize_dist_muon", lambda *_, **planned: None)
    monkeypatch.setattr("train.method.optimizers.sharded_axes", lambda weight: ["fsdp"])
    names = ["layers.0.wo.weight", "layers.1.wo.weight"]
    weights = [torch.nn.Parameter(torch.ones(2, 2)) for _ in names]
    group = {"params": weights, "param_names": names, "lr": 1.0, "adjust_lr_fn": "original"}
    optimizer = build_muon([{**group, "weight_decay": 0.1, "fused": False, "foreach": False}])
    assert isinstance(optimizer, SiteDistMuon)
    return optimizer


@pytest.mark.parametrize(
    ("settings", "decays"),
    [({"follow": ["weight_decay"]}, (0.2, 0.4)), ({"independent_decay": 0.01}, (0.02, 0.04))],
)
def test_torchtitans_muon_keeps_its_group_whole_and_steps_with_each_sites_lr(
    dist_muon: SiteDistMuon, settings: dict[str, Any], decays: tuple[float, float]
) -> None:
    (whole,) = dist_muon.param_groups
    weights = dict(zip(("a", "b"), whole["params"], strict=True))
    groups = SiteGroups([dist_muon], weights, rest="rest", **settings)
    schedule = LambdaLR(dist_muon, lambda step: 0.5 if step else 1.0)
    groups.set_factors({"a": Factors(0.5, 2, 1), "b": Factors(0.25, 4, 1)}, [schedule])
    assert [len(group["params"]) for group in dist_muon.param_groups] == [2]
    dist_muon._validate_groups()
    layouts = [SimpleNamespace(fqn=fqn, group_index=0) for fqn in whole["param_names"]]
    used = [dist_muon._group(layout) for layout in layouts]
    assert [g["lr"] for g in used] == [0.5, 0.25]
    assert [g["weight_decay"] for g in used] == pytest.approx(decays)
    whole["lr"] = 0.5  # as the schedule sets it
    assert [dist_muon._group(layout)["lr"] for layout in layouts] == [0.25, 0.125]
    assert groups.lrs() == {"a": 0.25, "b": 0.125}


# Who is who


def config_of(tmp_path: Path, *flags: str) -> dict[str, Any]:
    return record(parse(tiny(tmp_path / "run", "mup-no", *flags)))


def test_the_optimizer_is_part_of_a_runs_identity_and_adamw_is_written_as_before(
    tmp_path: Path,
) -> None:
    plain, adamw = config_of(tmp_path), config_of(tmp_path, "--optimizer", "adamw")
    muon = config_of(tmp_path, *MUON)
    assert identity(adamw) == identity(plain) != identity(muon)
    assert "optimizer" not in plain["maxp"]
    assert 'maxp.optimizer: "adamw" there, "muon" here' in differences(plain, muon)


def test_muons_scale_is_part_of_a_runs_identity_and_the_default_is_written_as_before(
    tmp_path: Path,
) -> None:
    plain = config_of(tmp_path, *MUON)
    default, original = (
        config_of(tmp_path, *MUON, "--maxp.adjust_lr_fn", fn)
        for fn in ("match_rms_adamw", "original")
    )
    assert identity(plain) == identity(default) != identity(original)
    assert "adjust_lr_fn" not in plain["maxp"]
    expected = 'maxp.adjust_lr_fn: "match_rms_adamw" there, "original" here'
    assert expected in differences(plain, original)


def test_the_default_folder_of_a_run_with_muon_says_so() -> None:
    config = make_config(Flags("debug", "sp", optimizer="muon"))
    assert config.dump_folder == "runs/debug_sp_lr1e-02_seed1_muon"


def test_torchtitans_own_flags_of_the_optimizer_still_work_beside_it(tmp_path: Path) -> None:
    flags = ("--optimizer.implementation", "foreach", *MUON)
    assert config_of(tmp_path, *flags)["optimizer"]["implementation"] == "foreach"


def test_the_optimizer_is_an_axis_of_tables_whatever_the_lr(tmp_path: Path) -> None:
    for seed, lr in enumerate((0.01, 0.1)):
        for optimizer in ("adamw", "muon"):
            folder = tmp_path / "run"
            flags = ("--lr", str(lr), "--optimizer", optimizer)
            settings = record(parse(tiny(folder, "mup-no", *flags)))
            keys = ("maxp", "optimizer")
            write_run(
                tmp_path / "runs",
                lr=lr,
                seed=seed,
                validation=3.0,
                name=f"{optimizer}{lr}",
                settings={key: settings[key] for key in keys},
            )
    results = Results.of(collect(tmp_path / "runs"), "validation")
    assert results.axes == {"maxp.optimizer": "optimizer"}
    assert set(results.cells["combination"]) == {"optimizer adamw", "optimizer muon"}


def test_a_sweep_takes_the_optimizer_as_an_axis(tmp_path: Path) -> None:
    runs = expand(sweep(tmp_path, BASIC + '[axes]\noptimizer = ["adamw", "muon"]\n'))
    assert runs[0].name == "debug_maxP_lr1e-02_seed1_optimizeradamw"
    assert {value_of(r.arguments, "--optimizer") for r in runs} == {"adamw", "muon"}
    assert len({r.identity for r in runs}) == len(runs)


# What is refused


@pytest.mark.parametrize(
    ("processes", "flags", "message"),
    [
        (
            2,
            ("--parallelism.tensor_parallel_degree", "2"),
            "--optimizer muon with --parallelism.tensor_parallel_degree 2: torchtitan has no Muon "
            "for tensor-parallel weights; leave the degree at 1, or pass --optimizer adamw",
        ),
        (
            2,
            ("--training.local_batch_size", "2"),
            "--optimizer muon on 2 shards: torchtitan's Muon for sharded weights needs CUDA "
            "devices; pass "
            "--parallelism.data_parallel_shard_degree 1 "
            "--parallelism.data_parallel_replicate_degree 2, or --optimizer adamw",
        ),
    ],
)
def test_what_muon_cannot_do_is_refused_in_one_line_with_the_remedy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(tiny_muon(tmp_path / "run", "sp", *flags))


def test_muons_scale_without_muon_is_refused() -> None:
    message = "--maxp.adjust_lr_fn original: only Muon has it; pass --optimizer muon"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MaxPSettings(adjust_lr_fn="original")


def test_an_optimizer_that_is_unknown_is_refused_with_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(tiny(tmp_path / "run", "sp", "--optimizer", "sgd"))
    words = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "--optimizer" in words
    assert "invalid choice 'sgd'" in words


def test_a_hidden_weight_that_is_no_matrix_is_refused_before_the_run() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(2, 2, 3)

    graph = Graph({"conv": SiteNode("conv", "hidden", (None,))})
    with pytest.raises(ValueError, match=r"^--optimizer muon: the weight of conv has 4 dimensions"):
        with_muon(default_adamw(), Model(), graph, lr=1.0)
