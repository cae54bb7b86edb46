"""A callback for `transformers.Trainer`."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from maxp.parametrization import Parametrization

_FILE = "maxp.pt"


class MaxPCallback(TrainerCallback):
    """Measures and solves after each step, and keeps the state in the Trainer's checkpoints.

    Args:
        parametrization: of the Trainer's model, made with ``use_training_activations=True``, or
            with a ``probe`` here. The Trainer's optimizer is built on its ``param_groups``.
        probe: a fixed probe, as in `Parametrization.capture_initial`.

    Raises:
        RuntimeError: training resumes from a checkpoint without the state.
    """

    def __init__(self, parametrization: Parametrization, probe: Any = None) -> None:
        self.parametrization, self.probe = parametrization, probe

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.parametrization.apply(kwargs["optimizer"])
        if state.global_step == 0:
            self.parametrization.capture_initial(self.probe)
            return
        file = _folder(args, state) / _FILE
        if not file.exists():
            raise RuntimeError(
                f"{file} does not exist: the checkpoint was saved without MaxPCallback, so "
                "training cannot continue; start again with it"
            )
        self.parametrization.load_state_dict(torch.load(file, weights_only=False))
        self.parametrization.apply(kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.parametrization.step(None, kwargs["optimizer"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.should_save:
            torch.save(self.parametrization.state_dict(), _folder(args, state) / _FILE)


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
