"""What a run leaves in its folder, and how it goes on where it was stopped."""

from __future__ import annotations

import json
import math
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import STEPS, Run, run, stop_at, stop_at_validation, tiny
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]
from torchtitan.trainer import Trainer

from scripts.torture.ranks import run_ranks
from train.run.identity import identity

ROOT = Path(__file__).parents[1]
WEIGHTED = "layers.0.feed_forward.w2"
BILINEAR = "layers.0.attention.inner_attention"
ALIGNMENTS = {"align_z0_dW", "align_dZ_w0", "align_dZ_dW"}


# What is in the folder


def test_the_configuration_is_kept_with_versions_and_commit(maxp_run: Run) -> None:
    content = json.loads((maxp_run.folder / "config.json").read_text())
    config = content["config"]
    coordinates = {name: config[name] for name in ("scale", "method", "lr", "seed", "steps")}
    expected = {"scale": "debug", "method": "maxP", "lr": 0.01, "seed": 1, "steps": STEPS}
    assert coordinates == expected
    assert config["training"]["seq_len"] == 32
    assert config["maxp"]["probe_tokens"] == 32
    assert config["model_spec"]["model"]["dim"] == 128
    assert content["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert "git_commit" in content


def test_the_status_says_completed_at_the_last_step(maxp_run: Run) -> None:
    status = maxp_run.record.status
    assert (status["state"], status["step"]) == ("completed", STEPS)


def test_every_step_is_logged_with_loss_speed_and_memory(maxp_run: Run) -> None:
    assert list(maxp_run.steps) == list(range(1, STEPS + 1))
    for record in maxp_run.steps.values():
        for name in ("loss", "grad_norm", "tokens_per_second", "step_seconds", "memory_gib"):
            assert record[name] > 0
    assert maxp_run.losses[0] == pytest.approx(math.log(4096), abs=0.2)
    assert math.isfinite(maxp_run.validation_losses[STEPS])


def test_the_logged_lr_is_the_one_the_optimizer_stepped_with(maxp_run: Run) -> None:
    for record, used in zip(maxp_run.steps.values(), maxp_run.lrs, strict=True):
        logged = {name: site["lr"] for name, site in record["sites"].items() if "lr" in site}
        assert logged == used


def test_the_logged_c_is_the_one_in_use_at_that_step(maxp_run: Run) -> None:
    for record, used in zip(maxp_run.steps.values(), maxp_run.c, strict=True):
        logged = {name: site["c"] for name, site in record["sites"].items() if "c" in site}
        assert logged == used


def test_alignments_are_logged_from_the_step_after_the_first_measurement(maxp_run: Run) -> None:
    # Measured after step 4: update 4 is made with what was known before.
    for step, record in maxp_run.steps.items():
        for name in (WEIGHTED, BILINEAR, "lm_head"):
            recorded = ALIGNMENTS & set(record["sites"].get(name, {}))
            assert recorded == (ALIGNMENTS if step > 4 else set())
        assert not ALIGNMENTS & set(record["sites"]["tok_embeddings"])


def test_the_last_measurement_is_in_the_log(maxp_run: Run) -> None:
    # Made after step 22, before the last two steps.
    measured = maxp_run.trainer.parametrization.measured[WEIGHTED]
    site = maxp_run.steps[STEPS]["sites"][WEIGHTED]
    assert [site[name] for name in ("align_z0_dW", "align_dZ_w0", "align_dZ_dW")] == list(measured)


def test_tensorboard_holds_the_same_values(maxp_run: Run) -> None:
    folder = maxp_run.folder / "tb"
    (events,) = (file for file in folder.rglob("events*") if folder / "hparams" not in file.parents)
    reader = event_accumulator.EventAccumulator(str(events.parent), size_guidance={"scalars": 0})
    reader.Reload()

    def drawn(tag: str) -> float:
        return {e.step: e.value for e in reader.Scalars(tag)}[STEPS]

    sites = maxp_run.steps[STEPS]["sites"]
    for name, type_ in (("tok_embeddings", "embedding"), ("lm_head", "readout"), ("rest", "rest")):
        for label, value in sites[name].items():
            assert drawn(f"{type_}/{label}") == pytest.approx(value, rel=1e-6)
    for label in ("lr", "c", "align_z0_dW", "align_dZ_w0", "align_dZ_dW"):
        hidden = [v[label] for k, v in sites.items() if "layers." in k and "lr" in v]
        for name, of in (("min", min), ("median", statistics.median), ("max", max)):
            assert drawn(f"hidden/{label}/{name}") == pytest.approx(of(hidden), rel=1e-6)
    losses = [e.value for e in reader.Scalars("loss_metrics/global_avg_loss")]
    assert losses == pytest.approx(maxp_run.losses, rel=1e-6)


# Stopped and started again


def test_a_run_stopped_without_a_checkpoint_starts_over_and_keeps_the_old_metrics(
    mup_no_run: Run, tmp_path: Path
) -> None:
    arguments = tiny(tmp_path / "run", "mup-no")
    stopped = run(arguments, before_step=stop_at(6))
    assert (stopped.code, stopped.record.status["state"]) == (130, "failed")
    assert run(arguments).losses == mup_no_run.losses
    old = (tmp_path / "run" / "metrics-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in old] == mup_no_run.losses[:5]


def test_a_checkpoint_that_was_not_written_to_its_end_is_none(
    mup_no_run: Run, tmp_path: Path
) -> None:
    arguments = tiny(tmp_path / "run", "mup-no", "--checkpoint.enable")
    run(arguments, before_step=stop_at(4))
    (tmp_path / "run" / "checkpoint" / "step-3").mkdir(parents=True)
    again = run(arguments)
    assert list(again.steps) == list(range(1, STEPS + 1))
    assert len(again.losses) == len(again.record.metrics) - 1  # and one validation: none is twice
    assert again.losses == mup_no_run.losses
    assert (tmp_path / "run" / "metrics-1.jsonl").exists()


# All state that resuming must bring back: running averages, the last measurement, W0 and z0.
STATEFUL = (
    *("--maxp.alignment_ema", "0.5", "--maxp.c_ema", "0.5"),
    *("--maxp.independent_weight_decay", "0.001"),
)
CHECKPOINTS = ("--checkpoint.enable", "--checkpoint.interval", "8")


@pytest.fixture(scope="module")
def uninterrupted(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tiny(tmp_path_factory.mktemp("run") / "whole", "maxP", *STATEFUL))


@pytest.fixture(scope="module")
def resumed(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Stopped at step 12, after the checkpoint of step 8 and the measurement of step 10."""
    arguments = tiny(tmp_path_factory.mktemp("run") / "in-two", "maxP", *STATEFUL, *CHECKPOINTS)
    run(arguments, before_step=stop_at(12))
    return run(arguments)


def test_a_resumed_run_goes_on_from_its_checkpoint(resumed: Run) -> None:
    assert resumed.code == 0
    assert len(resumed.lrs) == STEPS - 8


def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    uninterrupted: Run, resumed: Run
) -> None:
    assert resumed.losses == uninterrupted.losses
    assert resumed.validation_losses == uninterrupted.validation_losses
    assert resumed.lrs == uninterrupted.lrs[8:]
    assert resumed.decays == uninterrupted.decays[8:]
    assert resumed.c == uninterrupted.c[8:]
    assert all(map(torch.equal, resumed.batches, uninterrupted.batches[8:]))


def test_the_metrics_of_a_resumed_run_hold_every_step_once_with_equal_sites(
    uninterrupted: Run, resumed: Run
) -> None:
    steps = [record["step"] for record in resumed.record.metrics if "loss" in record]
    assert steps == list(range(1, STEPS + 1))
    for step in steps:
        assert resumed.steps[step]["sites"] == uninterrupted.steps[step]["sites"]


@pytest.fixture(scope="module")
def on_a_fixed_probe(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, on one fixed probe: what runs did before there was a flag for it."""
    flags = (*STATEFUL, *CHECKPOINTS, "--maxp.probe", "fixed")
    arguments = tiny(tmp_path_factory.mktemp("run") / "fixed", "maxP", *flags)
    run(arguments, before_step=stop_at(12))
    return run(arguments)


def test_a_run_on_a_fixed_probe_is_written_and_saved_as_before_the_flag_existed(
    on_a_fixed_probe: Run,
) -> None:
    assert "probe" not in on_a_fixed_probe.record.config["maxp"]
    state = on_a_fixed_probe.trainer.parametrization.state_dict()
    assert "text" not in state
    assert state["measurement"].keys() == {"probe", "z0", "w0", "seen"}


def test_a_run_on_a_fixed_probe_resumes_bit_for_bit(
    on_a_fixed_probe: Run, corpus_cache: Path, tmp_path: Path
) -> None:
    whole = run(tiny(tmp_path / "whole", "maxP", *STATEFUL, "--maxp.probe", "fixed"))
    assert on_a_fixed_probe.losses == whole.losses
    assert [r["sites"] for r in on_a_fixed_probe.steps.values()] == [
        r["sites"] for r in whole.steps.values()
    ]


def test_a_run_on_a_fixed_probe_does_not_go_on_on_fresh_text(
    on_a_fixed_probe: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny(on_a_fixed_probe.folder, "maxP", *STATEFUL, *CHECKPOINTS)).code == 2
    assert 'maxp.probe: "fixed" there, "fresh" here' in capsys.readouterr().err


def test_fresh_text_is_written_only_of_runs_that_measure(maxp_run: Run, mup_no_run: Run) -> None:
    assert maxp_run.record.config["maxp"]["probe"] == "fresh"
    assert "probe" not in mup_no_run.record.config["maxp"]


def test_an_average_of_c_goes_half_of_the_way_to_what_was_solved(uninterrupted: Run) -> None:
    target = uninterrupted.trainer.parametrization.targets[WEIGHTED]  # of step 22, the last solve
    before, after = uninterrupted.c[21][WEIGHTED], uninterrupted.c[22][WEIGHTED]
    assert before != target
    assert after == pytest.approx((before + target) / 2, rel=1e-12)


def validations(run: Run) -> list[tuple[str, int, float]]:
    """Kind, step and loss of every record, in the order of the file."""
    return [
        (name, r["step"], r[name])
        for r in run.record.metrics
        for name in ("loss", "validation_loss")
        if name in r
    ]


VALIDATED = (*CHECKPOINTS, "--validator.freq", "8")


@pytest.fixture(scope="module")
def validated(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Checkpoint and validation at steps 8, 16 and 24."""
    done = run(tiny(tmp_path_factory.mktemp("run") / "whole", "maxP", *VALIDATED))
    assert set(done.validation_losses) == {8, 16, 24}
    return done


def test_a_validation_that_was_interrupted_after_its_checkpoint_is_made_on_resuming(
    validated: Run, corpus_cache: Path, tmp_path: Path
) -> None:
    arguments = tiny(tmp_path / "run", "maxP", *VALIDATED)
    stop_at_validation(arguments)
    again = run(arguments)
    assert (again.code, len(again.lrs)) == (0, STEPS - 8)
    assert validations(again) == validations(validated)


@pytest.mark.parametrize("stopped", ["after step 8", "after the last step"])
def test_a_validation_that_was_written_is_not_made_again(
    stopped: str,
    validated: Run,
    corpus_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = tiny(tmp_path / "run", "maxP", *VALIDATED)
    if stopped == "after step 8":
        assert run(arguments, before_step=stop_at(9)).code == 130
    else:
        assert run(arguments).code == 0
        (tmp_path / "run" / "status.json").unlink()
    again = run(arguments)
    assert again.code == 0
    assert validations(again) == validations(validated)


def test_tokens_are_those_of_all_steps_whatever_the_checkpoint_counted(
    maxp_run: Run, corpus_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A checkpoint of two ranks holds the tokens of one, half of the run's.
    arguments = tiny(tmp_path / "run", "maxP", *CHECKPOINTS)
    whole = Trainer.state_dict
    with monkeypatch.context() as patch:

        def of_one_rank(self: Trainer) -> dict[str, Any]:
            state = whole(self)
            return state | {"ntokens_seen": state["ntokens_seen"] // 2}

        patch.setattr(Trainer, "state_dict", of_one_rank)
        assert run(arguments, before_step=stop_at(12)).code == 130
    again = run(arguments)
    tokens = {step: record["tokens"] for step, record in again.steps.items()}
    assert tokens == {step: record["tokens"] for step, record in maxp_run.steps.items()}


# A real process, really killed


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", [(), CHECKPOINTS])
def test_a_killed_process_is_followed_by_one_that_ends_the_same(
    uninterrupted: Run,
    tmp_path: Path,
    checkpoints: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = tiny(tmp_path / "run", "maxP", *STATEFUL, *checkpoints)
    monkeypatch.setenv("STOP", "13")
    monkeypatch.setenv("STOP_SIGNAL", "SIGKILL")
    killed = run_ranks("rank_worker", str(tmp_path), *arguments, processes=1)
    assert killed.returncode == -signal.SIGKILL
    left = Run(tmp_path / "run")
    assert (left.record.status["state"], len(left.steps)) == ("running", 12)
    after = run(arguments)
    assert after.code == 0
    assert after.losses == uninterrupted.losses
    assert after.validation_losses == uninterrupted.validation_losses
    assert [r["sites"] for r in after.steps.values()] == [
        r["sites"] for r in uninterrupted.steps.values()
    ]
    assert (tmp_path / "run" / "metrics-1.jsonl").exists() == (not checkpoints)


@pytest.mark.slow
def test_two_processes_have_one_identity_for_one_command(
    corpus_cache: Path, tmp_path: Path
) -> None:
    arguments = [tiny(tmp_path / name, "mup-no", "--steps", "1") for name in ("own", "here")]
    # In a process of its own sets have another order.
    assert subprocess.run([sys.executable, "-m", "train", *arguments[0]], cwd=ROOT).returncode == 0
    assert run(arguments[1]).code == 0
    own, here = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("own", "here"))
    assert own["identity"] == here["identity"] == identity(here["config"])
