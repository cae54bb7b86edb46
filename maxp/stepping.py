"""Training with a `maxp.Parametrization`: what its steps measure, solve and save."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from maxp.alignment import Measured
from maxp.checks import check_in_model, check_parameters, check_scales
from maxp.factors import ParamGroups
from maxp.fold import fold
from maxp.initial import is_as_before, site_seeds, some_entries
from maxp.measurement import Measurement
from maxp.module import Site, few
from maxp.parts import blocks_of
from maxp.schedules import unwrapped
from maxp.shards import agreed, of_first_rank
from maxp.trace import call_model
from maxp.w0 import InitialWeights, other_tensors

logger = logging.getLogger(__name__)


class Steps(ParamGroups):
    """Measures in training, solves again, sets learning rates, and resumes."""

    model: nn.Module
    seed: int
    _owners: dict[str, str]
    _seeds: dict[str, int]
    _stds: dict[str, float]

    def _prepare_steps(
        self,
        measurable: Mapping[str, Site],
        *,
        warmup_steps: int,
        solve_interval: int,
        sample_size: int,
        resample_w0: bool,
        use_training_activations: bool,
        fused: Mapping[str, int | Sequence[int]] | None,
    ) -> None:
        """Prepare to measure the sites ``measurable``; see `maxp.Parametrization`."""
        self.steps, self.warmup_steps, self.solve_interval = 0, warmup_steps, solve_interval
        self._folded, self._resample_w0 = False, resample_w0
        self._with_tied = {n: s.weight for n, s in self.sites.items() if s.weight is not None}
        self._measured_weights = {n: w for n, w in self._with_tied.items() if n in measurable}
        self._drawn = {name: some_entries(w) for name, w in self._measured_weights.items()}
        self._measurement = Measurement(
            self.model,
            measurable,
            self._measured_weights,
            initial_weights=self._initial_weights,
            forward=self.forward,
            sample_size=sample_size,
            from_training=use_training_activations,
            blocks=blocks_of({n: measurable[n] for n in self._measured_weights}, fused),
        )

    def _initial_weights(self) -> InitialWeights:
        return InitialWeights(
            self._measured_weights,
            self._seeds,
            self._stds,
            resample=self._resample_w0,
            others=partial(other_tensors, self.model, self._with_tied, self._measured_weights),
        )

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copies, which have no optimizer until `apply` or `step` receives one."""
        return {**self.__dict__, "_optimizer": None, "_scheduled_before": {}}

    # Measuring and solving

    def forward(self, x: Any) -> Any:
        """Run the model on a batch; override it if the model needs more than a call."""
        return call_model(self.model, x)

    def capture_initial(self, x: Any = None, *, any_batch: bool = True) -> None:
        """Store the initial weights. Call it before training.

        A warning says if they have changed since `Parametrization` drew them, by more than one
        constant factor per weight: alignment is then measured against trained weights, or against
        those that were loaded on purpose.

        Args:
            x: a fixed probe: a tensor, or a tuple or dict of the model's arguments, the same on
                every rank. A copy is kept, and the sites' inputs on it are stored, so that
                measuring on it takes one forward pass instead of two. None: no fixed probe.
            any_batch: also store all other parameters and floating-point buffers, from which the
                initial activations of any batch are computed. False saves this memory; `step` then
                measures on ``x`` alone.

        Raises:
            ValueError: with ``resample_w0``, if the weights have changed since they were drawn; if
                a site has been replaced by another module, or its weight by another parameter; if
                ``x`` is empty, contains NaN, or does not reach every site; or if it is None and
                ``any_batch`` is False.
        """
        self._check_not_folded()
        check_in_model(self.sites, self.model)
        check_parameters(self.model, self._measured_weights.items())
        if x is None and not any_batch:
            raise ValueError("any_batch=False needs a fixed probe: pass x")
        self._measurement.capture(x, any_batch=any_batch)
        weights = self._measured_weights
        changed = [n for n, entries in self._drawn.items() if not is_as_before(entries, weights[n])]
        if changed:
            logger.warning(
                "%s: the weights have changed since Parametrization drew them, and are now taken "
                "for the initial ones; to resume, load p.state_dict() and do not call "
                "capture_initial",
                few(changed, 4),
            )

    def step(self, x: Any, optimizer: Optimizer) -> None:
        """Measure and solve if due, and set the learning rates. Call it after ``optimizer.step()``.

        Measuring on another batch than the fixed probe takes a forward pass with the current
        weights and one with the initial weights, in evaluation mode and without gradients. Weights,
        buffers, gradients and random number generators are the same after it, also if it raises.

        Args:
            x: any batch, such as the one just trained on, in the form that `forward` takes. Where
                ranks share weights, the first rank's is used. None is the fixed probe of
                `capture_initial`. With ``use_training_activations``, it is not used.
            optimizer: an optimizer built on ``param_groups``; its groups are matched by ``name``.

        Raises:
            RuntimeError: `capture_initial` has not been called, or stored nothing that ``x`` can be
                measured with; or with ``use_training_activations``, training has not run the model
                since the last measurement.
            ValueError: no alignment can be measured on ``x``: it is empty, contains NaN, or does
                not reach every site; or a site's weight has been replaced by another parameter.
        """
        self._check_not_folded()
        optimizer = unwrapped(optimizer)
        self._measurement.check(x)
        if optimizer is not self._optimizer and self._stepped_otherwise(optimizer):
            logger.warning(
                "the optimizer has stepped with other learning rates than those of param_groups; "
                "call apply(optimizer) after optimizer.load_state_dict"
            )
        self._warn_of_one_lr(optimizer)  # its first step came before `apply` received it
        self._see_schedulers(optimizer)
        self.steps += 1
        if self.due(self.steps):
            self.measure(of_first_rank(x, self.weights.values()))
            self.solve()
            self._take_solution_of_first_rank()
        self.apply(optimizer)

    def _take_solution_of_first_rank(self) -> None:
        state = self.solution_state()
        if (first := agreed(state)) is not state:
            self.load_solution_state(first)

    def due(self, step: int) -> bool:
        """Whether call number ``step`` of `step` measures and solves."""
        after = step - self.warmup_steps
        return after > 0 and after % self.solve_interval == 0

    def measure(self, x: Any = None) -> dict[str, Measured]:
        """Measure every site's alignment; the next `solve` uses it.

        Args:
            x: as in `step`, but the same on every rank.

        Raises:
            RuntimeError, ValueError: as `step`.
        """
        check_parameters(self.model, self._measured_weights.items())
        self.set_measured(self._measurement.exponents(x), self._measurement.missed)
        return self.measured

    def fold(self) -> None:
        """Write all multipliers into the weights, and turn marked modules into ordinary ones.

        The model's outputs stay the same, and anything that loads such a model can load it. Call it
        after training: `step` and `capture_initial` then raise.

        A tied weight whose roles have different multipliers is untied. A plain model that ties it
        loads the state without an error and gives wrong outputs; untie it before it loads:
        ``out.weight = nn.Parameter(out.weight.detach().clone())``. Models of transformers that are
        saved with ``save_pretrained`` are untied when they are loaded.

        Raises:
            ValueError: a weight that has to be multiplied is computed from others, as by pruning.
        """
        fold(self.model, self.sites)
        self._folded = True

    def _check_not_folded(self) -> None:
        if self._folded:
            raise RuntimeError(
                "fold has written the multipliers into the weights; training is over"
            )

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to continue exactly.

        The keys do not depend on what has been measured, so that `torch.distributed.checkpoint` can
        load a state in place.
        """
        measuring = self._measurement.w0 is not None
        return {
            **self.solution_state(),
            "steps": self.steps,
            "seed": self.seed,
            "lr_prefactor": self._lr_prefactor,
            "scales": {name: site.scale for name, site in self.sites.items()},
            "measurement": self._measurement.state_dict() if measuring else None,
            **self._optimizer_state(),
        }

    def _optimizer_state(self) -> dict[str, Any]:
        """What the c in a state are for, if it is not Adam alone."""
        fns = self._adjust_lr_fns()
        sgd = {"optimizer_type": "sgd"} if self._optimizer_type == "sgd" else {}
        return {**sgd, **({"adjust_lr_fns": fns} if fns else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Load the states of the model and the optimizer separately.

        It restores ``lr_prefactor`` as well; to continue with another one, set it after loading. An
        optimizer that loads a state after ``lr_prefactor`` has been set keeps the learning rates of
        that state until `apply` or `step`.

        Raises:
            ValueError: the state is of a model with other sites, or with other multipliers; or of a
                run with another optimizer_type or adjust_lr_fn.
        """
        own = self._optimizer_state()
        if any(state.get(key) != own.get(key) for key in ("optimizer_type", "adjust_lr_fns")):
            raise ValueError(
                "the state is of a run with another optimizer_type or adjust_lr_fn, whose learning "
                "rates differ; give the same ones"
            )
        # A state of an earlier version does not contain the multipliers.
        check_scales(self.sites, state.get("scales", {}))
        self.load_solution_state(state)
        self.steps, self.seed = state["steps"], state["seed"]
        self._seeds = site_seeds(self.seed, self._owners)
        self._lr_prefactor = state["lr_prefactor"]
        if state["measurement"] is not None:
            self._measurement.load_state_dict(state["measurement"])
        self.apply()
