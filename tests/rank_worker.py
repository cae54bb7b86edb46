"""One rank of a run under torchrun: the command line of training, then what this rank saw.

    torchrun --nproc-per-node 2 tests/rank_worker.py FOLDER --scale debug ...

Writes FOLDER/rank0.json and so on: c and lr by site at the end, how often a rank's alignment was
not the first one's, the placements and rows of the weights, what the last measurement sent, and
the time limits of the process groups. With TAMPER set, the last rank measures something else; with
STOP set, the last rank gets the signal STOP_SIGNAL, or SIGUSR2, as that step begins.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed import distributed_c10d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parents[1]))

from maxp.shards import local
from train import __main__ as command
from train.method.probe import TrainerParametrization
from train.model.scales import SCALES, Scale
from train.trainer import MaxPTrainer

# No dimension divides among three ranks, and the four rows of the key and value projections are
# held by two of them.
UNEVEN = Scale(
    "uneven", 20, 2, 5, 1, 40, seq_len=32, local_batch_size=3, global_batch_size=3, on_corpus=True
)


class Sent(TorchDispatchMode):
    """What is sent between processes while it is entered: (operation, bytes), in order."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
            self.operations.append((func._opname, max(t.nbytes for t in tensors)))
        return func(*args, **(kwargs or {}))


def watch_measurements(seen: dict[str, Any]) -> None:
    """Put what the last measurement sent into ``seen``, its forward passes apart from the rest."""
    measure, forward = TrainerParametrization.measure, TrainerParametrization.forward

    def watched_measure(self: TrainerParametrization) -> Any:
        seen["sent_by_forward"] = []
        with Sent() as sent:
            values = measure(self)
        seen["sent"] = sent.operations
        return values

    def watched_forward(self: TrainerParametrization, x: Any) -> None:
        with Sent() as sent:
            forward(self, x)
        seen["sent_by_forward"] += sent.operations

    TrainerParametrization.measure = watched_measure  # type: ignore[method-assign]
    TrainerParametrization.forward = watched_forward  # type: ignore[method-assign]


def limits() -> list[float]:
    """The time limits of all process groups, in seconds."""
    cpu = torch.device("cpu")
    groups = distributed_c10d._world.pg_map.items()
    return [
        group._get_backend(cpu).options._timeout.total_seconds()
        for group, (backend, _) in groups
        if backend != "fake"
    ]


def main() -> int:
    folder = Path(sys.argv.pop(1))
    SCALES[UNEVEN.name] = UNEVEN
    train = MaxPTrainer.train
    seen: dict[str, Any] = {}
    watch_measurements(seen)

    def watched(self: MaxPTrainer) -> None:
        train(self)
        weights = self.parametrization.weights
        seen.update(
            {
                "limits": limits(),
                "c": self.parametrization.c,
                "lr": self.groups.lrs(),
                "disagreed": self.parametrization.disagreed,
                "rows": {name: local(w).shape[0] for name, w in weights.items()},
                "placements": {
                    name: str(getattr(w, "placements", "")) for name, w in weights.items()
                },
            }
        )
        (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(seen))

    MaxPTrainer.train = watched  # type: ignore[method-assign]
    if "TAMPER" in os.environ and os.environ["RANK"] != "0":
        measure = TrainerParametrization.measure

        def tampered(self: TrainerParametrization) -> Any:
            values = measure(self)
            self.set_measured({**values, "lm_head": (0.9, 0.9, 0.9)})
            return values

        TrainerParametrization.measure = tampered  # type: ignore[method-assign]
    if "STOP" in os.environ and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        train_step = MaxPTrainer.train_step

        def signalled(self: MaxPTrainer, data: Any) -> None:
            if self.step == int(os.environ["STOP"]):
                os.kill(os.getpid(), signal.Signals[os.environ.get("STOP_SIGNAL", "SIGUSR2")])
            train_step(self, data)

        MaxPTrainer.train_step = signalled  # type: ignore[method-assign]
    return command.main()


if __name__ == "__main__":
    sys.exit(main())
