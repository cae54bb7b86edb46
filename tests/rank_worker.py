"""One rank of a run under torchrun: the command line of training, then what this rank saw.

    torchrun --nproc-per-node 2 tests/rank_worker.py FOLDER --scale debug ...

Writes FOLDER/rank0.json and so on: c and lr by site at the end, how often a rank's alignment was
not the first one's, and the placements of the weights. With TAMPER set, the last rank measures
something else; with STOP set, the last rank gets a SIGUSR2 in that step.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from train import __main__ as command
from train.probe import TrainerParametrization
from train.trainer import MaxPTrainer


def main() -> int:
    folder = Path(sys.argv.pop(1))
    train = MaxPTrainer.train

    def watched(self: MaxPTrainer) -> None:
        train(self)
        weights = self.parametrization.weights
        seen = {
            "c": self.parametrization.c,
            "lr": self.groups.lrs(),
            "disagreed": self.parametrization.disagreed,
            "placements": {name: str(getattr(w, "placements", "")) for name, w in weights.items()},
        }
        (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(seen))

    MaxPTrainer.train = watched  # type: ignore[method-assign]
    if "TAMPER" in os.environ and os.environ["RANK"] != "0":
        measure = TrainerParametrization.measure

        def tampered(self: TrainerParametrization) -> Any:
            values = measure(self)
            self._take_up("lm_head", (0.9, 0.9, 0.9))
            return values

        TrainerParametrization.measure = tampered  # type: ignore[method-assign]
    if "STOP" in os.environ and os.environ["RANK"] != "0":
        train_step = MaxPTrainer.train_step

        def signalled(self: MaxPTrainer, data: Any) -> None:
            if self.step == int(os.environ["STOP"]):
                os.kill(os.getpid(), signal.SIGUSR2)
            train_step(self, data)

        MaxPTrainer.train_step = signalled  # type: ignore[method-assign]
    return command.main()


if __name__ == "__main__":
    sys.exit(main())
