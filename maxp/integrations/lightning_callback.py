"""A callback for Lightning's `Trainer`."""

from typing import Any

from lightning.pytorch import Callback

from maxp.parametrization import Parametrization


class MaxPCallback(Callback):
    """Measures and solves after each step, and keeps the state in Lightning's checkpoints.

    Args:
        parametrization: of the module's model, made with ``use_training_activations=True``, or with
            a ``probe`` here. ``configure_optimizers`` builds one optimizer on its ``param_groups``.
        probe: a fixed probe, as in `Parametrization.capture_initial`.

    Raises:
        RuntimeError: training resumes from a checkpoint without the state.
    """

    def __init__(self, parametrization: Parametrization, probe: Any = None) -> None:
        self.parametrization, self.probe = parametrization, probe
        self._loaded, self._steps = False, 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step > 0 and not self._loaded:
            raise RuntimeError(
                "the checkpoint was saved without MaxPCallback, so training cannot continue; start "
                "again with it"
            )
        (optimizer,) = trainer.optimizers
        self.parametrization.apply(optimizer)
        if not self._loaded:
            self.parametrization.capture_initial(self.probe)
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step > self._steps:  # not in the middle of accumulating gradients
            self._steps = trainer.global_step
            self.parametrization.step(None, trainer.optimizers[0])

    def state_dict(self) -> dict[str, Any]:
        return self.parametrization.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.parametrization.load_state_dict(state_dict)
        self._loaded = True
