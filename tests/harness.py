"""Runs of ``python -m train`` inside the test's process, and what they did at every step."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torchtitan.trainer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from train import __main__ as command
from train.metrics import HeldOutValidator
from train.run.folder import RunRecord, load_run
from train.trainer import MaxPTrainer

ROOT = Path(__file__).parents[1]

STEPS = 24
WARMUP = 5
DECAY = 6  # STEPS times the decay ratio

# A run of about a second: warm-up, a stable part and decay, with measurements in all three.
TINY = (
    *("--steps", str(STEPS)),
    *("--training.seq_len", "32"),
    *("--training.local_batch_size", "4"),
    *("--training.global_batch_size", "4"),
    *("--lr_scheduler.warmup_steps", str(WARMUP)),
    *("--lr_scheduler.decay_ratio", str(DECAY / STEPS)),
    *("--validator.sequences", "8"),
    *("--validator.freq", "1000"),
    *("--metrics.log_freq", "1"),
    *("--maxp.measure_from", "1"),
    *("--maxp.solve_interval", "3"),
    *("--maxp.probe_tokens", "32"),
)


def tiny(folder: Path, method: str, *more: str, scale: str = "debug") -> list[str]:
    """The command line of a tiny run; of a flag given twice the last counts."""
    return ["--scale", scale, "--method", method, "--output-dir", str(folder), *TINY, *more]


@dataclass
class Run:
    """What a run did; lists hold one entry a step, in the order of the steps that were made."""

    folder: Path
    code: int = -1
    trainer: Any = None
    lrs: list[dict[str, float]] = field(default_factory=list)
    """The lr by group that the optimizer had when it stepped."""
    decays: list[dict[str, float]] = field(default_factory=list)
    """Its weight decay, likewise."""
    c: list[dict[str, float]] = field(default_factory=list)
    """The exponents in use when the step began."""
    batches: list[torch.Tensor] = field(default_factory=list)
    """The tokens of each microbatch, (batch, seq_len)."""

    @property
    def record(self) -> RunRecord:
        return load_run(self.folder)

    @property
    def steps(self) -> dict[int, dict[str, Any]]:
        """The training records of metrics.jsonl by step."""
        return {r["step"]: r for r in self.record.metrics if "loss" in r}

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.steps.values()]

    @property
    def validation_losses(self) -> dict[int, float]:
        validations = [r for r in self.record.metrics if "validation_loss" in r]
        return {r["step"]: r["validation_loss"] for r in validations}


def run(arguments: list[str], before_step: Callable[[MaxPTrainer], None] | None = None) -> Run:
    """Run a command line to its end, watching the optimizer.

    Args:
        before_step: called before each step; may raise.
    """
    flag = next(f for f in ("--output-dir", "--dump_folder") if f in arguments)
    seen = Run(Path(arguments[arguments.index(flag) + 1]))
    train_step, forward_backward_step = MaxPTrainer.train_step, MaxPTrainer.forward_backward_step

    def watched_step(self: MaxPTrainer, data: Iterator[Any]) -> None:
        seen.trainer = self
        if before_step is not None:
            before_step(self)
        seen.c.append(dict(self.parametrization.c))
        train_step(self, data)

    def watched_batch(self: MaxPTrainer, **arguments: Any) -> torch.Tensor:
        seen.batches.append(arguments["input_dict"]["input"].clone())
        return forward_backward_step(self, **arguments)

    def watch_optimizer(optimizer: Any, *_: Any) -> None:
        groups = optimizer.param_groups
        # torchtitan makes a step at lr 0 to create the state that a checkpoint is loaded into.
        if isinstance(optimizer, torch.optim.AdamW) and any(g["lr"] for g in groups):
            seen.lrs.append({g["name"]: g["lr"] for g in groups})
            seen.decays.append({g["name"]: g["weight_decay"] for g in groups})

    with (
        in_process(),
        mock.patch.object(sys, "argv", ["train", *arguments]),
        mock.patch.object(MaxPTrainer, "train_step", watched_step),
        mock.patch.object(MaxPTrainer, "forward_backward_step", watched_batch),
    ):
        hook = register_optimizer_step_pre_hook(watch_optimizer)
        try:
            seen.code = command.main()
        finally:
            hook.remove()
    return seen


def stop_at(step: int) -> Any:
    """Interrupts a run before it makes its ``step``-th step."""

    def stop(trainer: Any) -> None:
        if trainer.step == step:
            raise KeyboardInterrupt

    return stop


def stop_at_validation(arguments: list[str]) -> None:
    """Run a command line that is interrupted where its first validation would begin."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with mock.patch.object(HeldOutValidator, "validate", stop):
        assert run(arguments).code == 130


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Ranks on a port of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command.append(f"--nproc-per-node={processes}")
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@contextmanager
def in_process() -> Iterator[None]:
    """Undo what a run leaves in its process; and spare the two seconds that torchtitan sleeps."""
    clock = torchtitan.trainer.time
    awake = SimpleNamespace(**{**vars(clock), "sleep": lambda seconds: None})
    deterministic = torch.are_deterministic_algorithms_enabled()
    generator = torch.get_rng_state()
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(torchtitan.trainer, "time", awake),
        # Its handlers would write to streams that pytest closes.
        mock.patch.object(command, "init_logger"),
    ):
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        try:
            yield
        finally:
            gc.enable()
            torch.use_deterministic_algorithms(deterministic)
            torch.set_rng_state(generator)
