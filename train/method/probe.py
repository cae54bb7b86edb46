"""The probe of a run: a few sequences on which alignment is measured."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from maxp import Graph, Parametrization
from maxp.shards import local
from train.checkpoint import CheckpointError

logger = logging.getLogger(__name__)

# Seeds the choice of the probe's sequences: the same for every method, lr and seed.
PROBE_SEED = 20_240_705


def draw_probe(
    dataloader: Any, tokenizer: Any, *, seq_len: int, sequences: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One batch of training text from a separate reader, so the run's own batches stay the same.

    Args:
        dataloader: the run's dataloader configuration.
        tokenizer, seq_len: those of the run.
        sequences: the number of sequences.

    Returns:
        (inputs, labels) in the form of torchtitan's dataloaders, each of shape (sequences,
        seq_len); the same on every rank.
    """
    # One document at a time, in this process: the shuffle of a stream would read thousands first.
    single = dataclasses.replace(dataloader, seed=PROBE_SEED, shuffle_buffer=1, num_workers=0)
    reader = single.build(
        dp_world_size=1,
        dp_rank=0,
        tokenizer=tokenizer,
        seq_len=seq_len,
        local_batch_size=sequences,
        snapshot_every_n_steps=None,
    )
    return next(iter(reader))


class TrainerParametrization(Parametrization):
    """`maxp.Parametrization` of a model that torchtitan has sharded and a trainer runs.

    Args:
        trainer: the trainer; it gives the context and the arguments of a forward pass.
        graph: the graph of the model's sites.
        settings: arguments of `maxp.Parametrization`.
    """

    def __init__(self, trainer: Any, model: nn.Module, graph: Graph, **settings: Any) -> None:
        self._trainer = trainer
        self.disagreed = 0
        super().__init__(model, sample_input=graph, **settings)

    def solve(self) -> None:
        """Solve on the first rank and use its solution on all, so that ranks cannot disagree."""
        first = dist.get_rank() == 0
        if first:
            super().solve()
        if dist.get_world_size() == 1:
            return
        states = [self.solution_state()]
        mine = self.alignment
        dist.broadcast_object_list(states, src=0)
        self.load_solution_state(states[0])
        apart = [name for name, values in self.alignment.items() if values != mine[name]]
        if apart and not first:
            self.disagreed += 1
            logger.warning(
                "alignment at %s differs from the first rank's, which is used (%d times so far)",
                ", ".join(apart[:4]),
                self.disagreed,
            )

    def counts(self) -> dict[str, int]:
        """How often a previous value was kept so far, by reason; without the zeros."""
        counts = {
            "refused": self.refused.total(),
            "zero_terms": self.zero_terms.total(),
            "infeasible": self.infeasible,
        }
        return {reason: count for reason, count in counts.items() if count}

    def check_initial_weights(self) -> None:
        """Check the stored W0 of all ranks; every measurement would be refused otherwise.

        Raises:
            CheckpointError: on every rank: an initial weight is NaN or infinite.
        """
        w0 = self._measurement.w0
        kept = (w0.kept() if w0 is not None else None) or {}
        bad = [name for name, weight in kept.items() if not local(weight).isfinite().all()]
        everywhere: list[Any] = [bad] * dist.get_world_size()
        dist.all_gather_object(everywhere, bad)
        if names := sorted({name for rank in everywhere for name in rank}):
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise CheckpointError(
                f"the initial weights of {', '.join(names[:4])}{more} are not finite, so alignment "
                "cannot be measured: restore the run's checkpoints, or start over in another "
                "--output-dir"
            )

    def forward(self, x: tuple[dict[str, torch.Tensor], torch.Tensor]) -> None:
        """Run the model on the probe, up to the head's input."""
        trainer, (inputs, labels) = self._trainer, x
        model: Any = self.model
        seen = trainer.ntokens_seen
        arguments = {key: value.to(trainer.device) for key, value in inputs.items()}
        tokens, _, kwargs = trainer.post_dataloading_process(arguments, labels.to(trainer.device))
        trainer.ntokens_seen = seen
        with trainer.train_context(), _uncompiled(model), _head_on_one_token(model):
            model(tokens, **kwargs)
        # FSDP leaves the last group gathered after a forward pass without a backward.
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Run compiled blocks eagerly.

    Their graphs do not contain the hooks of a measurement, and must not be compiled again for them.
    FlexAttention stays compiled, since its kernel is a separate function.
    """
    compiled = {m: m._compiled_call_impl for m in model.modules() if m._compiled_call_impl}
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, implementation in compiled.items():
            module._compiled_call_impl = implementation


@contextmanager
def _head_on_one_token(model: Any) -> Iterator[None]:
    """Call the head, as its hooks need, but on one token, since its logits are not used.

    Hooks registered before this one see the whole input.
    """
    skipped = model._skip_lm_head
    model._skip_lm_head = False
    hook: Any = None

    def first_token(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, :1], *args[1:])

    hook = model.lm_head.register_forward_pre_hook(first_token)
    try:
        yield
    finally:
        hook.remove()
        model._skip_lm_head = skipped
