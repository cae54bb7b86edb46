"""The trainers that `scripts.bench.train` compares: one model, the same batches, one process."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.trainer import Trainer

from maxp import shards
from maxp.shards import local
from train import cpu
from train.checks import data_parallel_ranks
from train.config import Flags, complete, make_config
from train.model.decoders import plain_model_config
from train.model.scales import get_scale
from train.trainer import MaxPTrainer

TITAN, STATIC = "torchtitan", "mup-no"
# More than any benchmark makes, so that nothing is saved or validated and lr stays in warm-up.
_STEPS = 1_000_000
_LR = 1e-3


@dataclass
class Contender:
    """A trainer, and the times of its steps so far, in ms.

    Attributes:
        interval: its solve interval; None for a trainer that never measures.
        redrawn: whether it draws W0 again instead of keeping it.
        blocks: per block, the times of its steps in ms; every ``min(interval, block)``-th step
            measures.
        peak: bytes that a block allocated beyond what was allocated before; None on a CPU, whose
            allocator does not report them.
    """

    name: str
    trainer: Any
    interval: int | None = None
    redrawn: bool = False
    blocks: list[list[float]] = field(default_factory=list)
    peak: int | None = None

    def __post_init__(self) -> None:
        self._data = self.trainer.batch_generator(self.trainer.dataloader)

    @property
    def parametrization(self) -> Any:
        return self.trainer.parametrization

    def step(self) -> float:
        """Make one training step; its time in ms, including the device's work."""
        _synchronize()
        start = time.perf_counter()
        self.trainer.step += 1
        self.trainer.train_step(self._data)
        _synchronize()
        return 1e3 * (time.perf_counter() - start)

    def run(self, block: int) -> None:
        """Make one untimed step, since caches hold another model, and ``block`` timed ones.

        A measuring trainer measures at every ``interval``-th timed step, and at least at the last.
        """
        gc.collect()  # torchtitan has turned off automatic collection
        before = _allocated(reset=True)
        if self.interval is not None:
            self.parametrization.warmup_steps = self.trainer.step + 1
            self.parametrization.solve_interval = min(self.interval, block)
        self.step()
        self.blocks.append([self.step() for _ in range(block)])
        if before is not None:
            self.peak = max(self.peak or 0, torch.accelerator.max_memory_allocated() - before)

    @property
    def measures_every(self) -> int | None:
        """It measures at this place in a block, and at its multiples."""
        return None if self.interval is None else min(self.interval, len(self.blocks[0]))

    def plain(self, i: int | None = None) -> list[float]:
        """Times of the steps that do not measure, in the i-th block or in all."""
        every = self.measures_every
        return [
            ms
            for steps in self._chosen(i)
            for place, ms in enumerate(steps, 1)
            if every is None or place % every
        ]

    def measuring(self, i: int | None = None) -> list[float]:
        """Times of the steps that measure, in the i-th block or in all."""
        every = self.measures_every
        if every is None:
            return []
        return [ms for steps in self._chosen(i) for ms in steps[every - 1 :: every]]

    def _chosen(self, i: int | None) -> list[list[float]]:
        return self.blocks if i is None else [self.blocks[i]]

    def bytes_of_model(self) -> int:
        """Bytes of parameters, gradients and optimizer state on this rank after a step."""
        parameters = [p for part in self.trainer.model_parts for p in part.parameters()]
        gradients = [p.grad for p in parameters]
        states = [dict(s) for o in self.trainer.optimizers for s in o.state.values()]
        return _bytes(parameters) + _bytes(gradients) + _bytes(states)

    def bytes_kept(self) -> dict[str, int]:
        """Bytes that measuring keeps on this rank: initial weights, z0 and the probe."""
        if self.interval is None:
            return {"w0": 0, "z0": 0, "probe": 0}
        state = self.parametrization.state_dict()["measurement"]
        return {
            "w0": _bytes([state["w0"], state.get("others")]),
            **{key: _bytes(state[key]) for key in ("z0", "probe")},
        }

    def bytes_communicated(self) -> int:
        """Bytes that this rank sends in the reductions of one measurement."""
        if self.interval is None:
            return 0
        with reduced_bytes() as sizes:
            self.parametrization.measure()
        return sum(sizes)


@contextmanager
def reduced_bytes() -> Iterator[list[int]]:
    """Collect the bytes of each reduction that `maxp.shards` makes between ranks."""
    sizes: list[int] = []
    reduce = shards._all_reduce

    def counted(tensors: list[torch.Tensor], group: Any) -> None:
        if group.size() > 1:
            sizes.append(_bytes(tensors))
        reduce(tensors, group)

    with mock.patch.object(shards, "_all_reduce", counted):
        yield sizes


def contenders(
    scale: str,
    intervals: tuple[int, ...],
    folder: Path,
    *,
    log_freq: int,
    probe_tokens: int,
    probe_sequences: int,
    parallelism: dict[str, int] | None = None,
) -> Iterator[Contender]:
    """torchtitan's own trainer, a static method, and maxP with W0 kept and with W0 drawn again.

    Args:
        scale: the scale of all of them.
        intervals: solve intervals, one trainer each; the last one also with ``resample_w0``.
        folder: where the runs write their files.
        log_freq: steps between logged steps.
        probe_tokens, probe_sequences: as ``--maxp.probe_tokens`` and ``--maxp.probe_sequences``.
        parallelism: fields of torchtitan's ``parallelism``.
    """

    def config(name: str, method: str) -> MaxPTrainer.Config:
        flags = Flags(scale, method, lr=_LR, steps=_STEPS, output_dir=str(folder / name))
        made = make_config(flags)
        complete(made)
        made.validator.enable = False
        made.checkpoint.enable = False
        made.metrics.log_freq = log_freq
        made.training.gc_freq = _STEPS
        made.parallelism = replace(made.parallelism, **(parallelism or {}))
        # The processes together have the same batch as one process.
        batch = made.training.local_batch_size // data_parallel_ranks(made)
        made.training.local_batch_size = max(1, batch)
        return made

    yield Contender(TITAN, torchtitan_trainer(config(TITAN, STATIC)))
    yield Contender(STATIC, config(STATIC, STATIC).build())
    variants = [(f"maxP every {k}", k, False) for k in intervals]
    variants.append((f"maxP every {intervals[-1]}, W0 redrawn", intervals[-1], True))
    for name, interval, resample in variants:
        made = config(name.replace(" ", "-"), "maxP")
        made.maxp.solve_interval, made.maxp.resample_w0 = interval, resample
        made.maxp.probe_tokens, made.maxp.probe_sequences = probe_tokens, probe_sequences
        yield Contender(name, made.build(), interval, resample)


def torchtitan_trainer(config: MaxPTrainer.Config) -> Trainer:
    """torchtitan's trainer and metrics with the same settings, on the model without sites."""
    inherited = _values(config, Trainer.Config)
    spec = config.model_spec
    assert spec is not None
    plain = plain_model_config(get_scale(config.scale), spec.model.vocab_size)
    inherited["model_spec"] = replace(spec, model=plain)
    inherited["metrics"] = MetricsProcessor.Config(
        **_values(config.metrics, MetricsProcessor.Config)
    )
    trainer = Trainer(Trainer.Config(**inherited))
    if not cpu.has_accelerator():
        cpu.use_sum_reductions(trainer.model_parts[0])
    return trainer


def _values(config: Any, parent: Any) -> dict[str, Any]:
    """The fields of a configuration that its class inherits from ``parent``."""
    return {f.name: getattr(config, f.name) for f in fields(parent) if f.init}


def _bytes(tree: Any) -> int:
    """Bytes of this rank's parts of the tensors in a nested container."""
    tensors = {id(t): t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)}
    return sum(local(t).numel() * t.element_size() for t in tensors.values())


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _allocated(*, reset: bool) -> int | None:
    """Bytes that the accelerator's allocator has given out; None on a CPU."""
    if not torch.accelerator.is_available():
        return None
    if reset:
        torch.accelerator.reset_peak_memory_stats()
    return int(torch.accelerator.memory_allocated())
