"""The probe of a run: the few sequences that alignment is measured on, new ones or always the same.

A separate reader reads them, so that the run's own batches stay the same.
"""

import dataclasses
import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torchtitan.models.common.decoder import Decoder

from maxp import Graph, Parametrization
from maxp.alignment import Measured
from maxp.shards import local
from train.checkpoint import CheckpointError

logger = logging.getLogger(__name__)

# Seeds the choice of the probes' sequences: the same for every method and lr.
PROBE_SEED = 20_240_705

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]


def draw_probe(dataloader: Any, tokenizer: Any, *, seq_len: int, sequences: int) -> Batch:
    """The fixed probe: one batch of training text, the same for every seed of a run.

    Args:
        dataloader: the run's dataloader configuration.
        tokenizer, seq_len: those of the run.
        sequences: the number of sequences.

    Returns:
        (inputs, labels) in the form of torchtitan's dataloaders, each of shape (sequences,
        seq_len); the same on every rank.
    """
    single = dataclasses.replace(dataloader, seed=PROBE_SEED)
    return next(iter(_reader(single, tokenizer, seq_len, sequences)))


class FreshText:
    """A new probe for each measurement: the next batch of training text.

    The n-th probe depends on the seed of the run's data and on n alone, not on the number of ranks.

    Args:
        dataloader: the run's dataloader configuration.
        tokenizer, seq_len: those of the run.
        sequences: the number of sequences of a probe.
    """

    def __init__(self, dataloader: Any, tokenizer: Any, *, seq_len: int, sequences: int) -> None:
        seed = PROBE_SEED + dataloader.seed
        endless = dataclasses.replace(dataloader, seed=seed, infinite=True)
        self._reader = _reader(endless, tokenizer, seq_len, sequences)
        self._batches: Iterator[Batch] | None = None

    def draw(self) -> Batch:
        """The next probe, as from `draw_probe`."""
        if self._batches is None:
            self._batches = iter(self._reader)
        return next(self._batches)

    def state_dict(self) -> bytes:
        """The position in the text; in bytes, so that a checkpoint takes any reader's state."""
        return pickle.dumps(self._reader.state_dict())

    def load_state_dict(self, state: bytes) -> None:
        """Continue after the last probe that was drawn."""
        self._reader.load_state_dict(pickle.loads(state))
        self._batches = None


def _reader(dataloader: Any, tokenizer: Any, seq_len: int, sequences: int) -> Any:
    # One document at a time, in this process: the shuffle of a stream would read thousands first.
    single = dataclasses.replace(dataloader, shuffle_buffer=1, num_workers=0)
    return single.build(
        dp_world_size=1,
        dp_rank=0,
        tokenizer=tokenizer,
        seq_len=seq_len,
        local_batch_size=sequences,
    )


class TrainerParametrization(Parametrization):
    """`maxp.Parametrization` of a model that torchtitan has sharded and a trainer runs.

    Args:
        trainer: the trainer; it gives the context and the arguments of a forward pass.
        graph: the graph of the model's sites.
        settings: arguments of `maxp.Parametrization`.
    """

    def __init__(self, trainer: Any, model: nn.Module, graph: Graph, **settings: Any) -> None:
        self._trainer = trainer
        self._text: FreshText | None = None
        self.disagreed = 0
        super().__init__(model, sample_input=graph, **settings)

    def measure_on(self, text: FreshText) -> None:
        """Measure on the next text at each measurement. Call it in place of `capture_initial`."""
        self.capture_initial()
        self._text = text

    def measure(self, x: Any = None) -> dict[str, Measured]:
        """Measure on ``x``, or on the next text, or else on the fixed probe."""
        if x is None and self._text is not None:
            x = self._text.draw()
        return super().measure(x)

    def state_dict(self) -> dict[str, Any]:
        text = {} if self._text is None else {"text": self._text.state_dict()}
        return {**super().state_dict(), **text}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self._text is not None:
            self._text.load_state_dict(state["text"])

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
        """How often a measured value was not used as it was, by reason; without the zeros."""
        counts = {
            "refused": self.refused.total(),
            "zero_terms": self.zero_terms.total(),
            "bounded": self.bounded_values.total(),
            "infeasible": self.infeasible,
        }
        return {reason: count for reason, count in counts.items() if count}

    def check_initial_weights(self) -> None:
        """Check the stored W0 of all ranks; every measurement would be refused otherwise.

        Raises:
            CheckpointError: on every rank: an initial weight is NaN or infinite.
        """
        w0 = self._measurement.w0
        kept = {} if w0 is None else {**(w0.kept() or {}), **(w0.others() or {})}
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
        """Run the model on a probe, up to the head's input."""
        trainer, (inputs, labels) = self._trainer, x
        model: Any = self.model
        seen = trainer.ntokens_seen
        arguments = {key: value.to(trainer.device) for key, value in inputs.items()}
        tokens, _, kwargs = trainer.post_dataloading_process(arguments, labels.to(trainer.device))
        trainer.ntokens_seen = seen
        decodes = isinstance(model, Decoder)
        head = _head_on_one_token(model) if decodes else nullcontext()
        with trainer.train_context(), _uncompiled(model), head:
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
