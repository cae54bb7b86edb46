"""Costs by arithmetic, against counts of real models and of the operations that they make."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode

from train.method.settings import MaxPSettings
from train.model import costs
from train.model.costs import Mesh, Probe
from train.model.scales import SCALES, get_scale

DEBUG = get_scale("debug")


@pytest.fixture(scope="module", params=["fresh", "fixed"])
def trainer(
    request: pytest.FixtureRequest, corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory
):
    """A maxP trainer of the debug scale after a step, on a probe smaller than its sequence."""
    from harness import in_process

    from train.config import Flags, complete, make_config
    from train.faults import single_process_environment

    with in_process():
        single_process_environment()
        folder = str(tmp_path_factory.mktemp("run"))
        config = make_config(Flags("debug", output_dir=folder, steps=10))
        complete(config)
        config.maxp.probe_tokens, config.maxp.probe_sequences = 40, 2
        config.maxp.probe = request.param
        config.validator.enable = False
        built = config.build()
        built.step += 1
        built.train_step(built.batch_generator(built.dataloader))
        yield built
        built.close()
        torch.distributed.destroy_process_group()


def probe_of(trainer) -> Probe:
    return Probe(2, 40, fresh=trainer.config.maxp.probe == "fresh")


@pytest.mark.parametrize("name", ["debug", "s1", "s3", "s5", "cpu64", "w256"])
def test_parameters_are_those_of_the_model(name: str) -> None:
    from train.model.decoders import model_config

    scale = get_scale(name)
    with torch.device("meta"):
        model = model_config(scale, costs.vocabulary(scale)).build()
    assert sum(costs.parameters(scale)) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["debug", "s2"])
def test_step_flops_are_those_that_torchtitan_counts_for_mfu(name: str) -> None:
    from train.model.decoders import model_config

    scale = get_scale(name)
    config = model_config(scale, costs.vocabulary(scale))
    with torch.device("meta"):
        model = config.build()
    _, per_token = config.get_nparams_and_flops(model, scale.seq_len)
    norms = 6 * (2 * scale.n_layers + 1) * scale.dim  # which it takes for matrices
    tokens = scale.global_batch_size * scale.seq_len
    assert costs.step_flops(scale) == (per_token - norms) * tokens


def test_bytes_are_those_of_the_tensors(trainer) -> None:
    from scripts.bench.contenders import Contender

    contender = Contender("maxP", trainer, interval=1)
    expected = costs.memory(DEBUG, probe=probe_of(trainer))
    assert contender.bytes_of_model() == expected.model
    assert contender.bytes_kept() == {"w0": expected.w0, "z0": expected.z0, "probe": expected.probe}


def test_measurement_flops_are_those_that_torch_counts(trainer) -> None:
    # The counter does not know the CPU's fused attention; its matrix products it does.
    for module in trainer.model_parts[0].modules():
        if hasattr(module, "sdpa_backends"):
            module.sdpa_backends = [SDPBackend.MATH]
    with FlopCounterMode(display=False) as counter:
        trainer.parametrization.measure()
    assert costs.measurement_flops(DEBUG, probe_of(trainer)) == counter.get_total_flops()


def test_the_probe_of_the_predictions_is_the_one_that_a_run_measures_on_by_default() -> None:
    settings = MaxPSettings()
    fresh = settings.probe == "fresh"
    expected = Probe(settings.probe_sequences, settings.probe_tokens, fresh=fresh)
    assert Probe() == expected == Probe(4, 32)


def test_one_process_communicates_nothing() -> None:
    assert costs.communicated(DEBUG) == 0


def test_shards_divide_what_the_model_takes_but_not_z0() -> None:
    one, four = costs.memory(DEBUG), costs.memory(DEBUG, Mesh(shard=4))
    assert (four.parameters, four.w0, four.z0) == (one.parameters / 4, one.w0 / 4, one.z0)


def test_replicas_divide_nothing() -> None:
    assert costs.memory(DEBUG, Mesh(replicate=2)) == costs.memory(DEBUG)
    assert costs.communicated(DEBUG, Mesh(replicate=2)) == 0


def test_a_redrawn_w0_is_not_kept() -> None:
    fresh, fixed = (costs.memory(DEBUG, probe=Probe(fresh=fresh)) for fresh in (True, False))
    assert fixed.kept(resample_w0=False) - fixed.kept(resample_w0=True) == fixed.w0
    assert fresh.kept(resample_w0=True) == fresh.gains


@pytest.mark.parametrize("size", [9, 13, 15])
def test_uneven_rows_are_counted_as_the_first_rank_holds_them(size: int) -> None:
    held = torch.empty(size, 2).chunk(4)[0]
    assert costs.local_shape(costs.Weight("w", size, 2), Mesh(shard=4)) == tuple(held.shape)


def test_gpu_hours_by_hand() -> None:
    scale = SCALES["s1"]
    flops = 1000 * costs.step_flops(scale)
    hours = costs.gpu_hours(scale, 1000, 8, mfu=0.5, peak_flops=1e15)
    assert hours == pytest.approx(flops / 0.5e15 / 3600)


def test_gpus_that_do_not_share_the_batch_evenly_wait() -> None:
    scale = SCALES["s1"]  # 256 sequences: three ranks wait for the one with 86
    even, uneven = (costs.gpu_hours(scale, 10, gpus) for gpus in (2, 3))
    assert uneven / even == pytest.approx(86 * 3 / 256)


def test_measuring_at_every_step_costs_its_flops() -> None:
    scale = SCALES["s2"]
    more = costs.training_flops(scale, 100, solve_interval=10) - costs.training_flops(scale, 100)
    assert more == 10 * costs.measurement_flops(scale)


@pytest.mark.parametrize("given", [{"steps": 0}, {"gpus": 0}, {"mfu": 0.0}, {"mfu": 1.5}])
def test_impossible_runs_are_refused(given: dict) -> None:
    arguments = {"steps": 10, "gpus": 1, **given}
    with pytest.raises(ValueError, match=r"must be|at least"):
        costs.gpu_hours(DEBUG, **arguments)
