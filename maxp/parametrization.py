"""`Parametrization`: initialises and scales a model's sites, and sets their learning rates.

It is built once before training. `Parametrization.step` then measures the alignment of the run and
solves the program again. Source: Kilian and Wojnar 2025, on the program of Everett et al. 2024
(arXiv 2407.05872).
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from maxp.alignment import Measured
from maxp.base import Base, positive, resolve_base
from maxp.bounds import BOUNDS, AlignmentBounds
from maxp.checks import (
    check_alignments,
    check_branches,
    check_in_model,
    check_scales,
    check_sites,
    warn_of_unmarked,
)
from maxp.depth import Depth
from maxp.exponents import PRESETS, OptimizerType
from maxp.factors import ParamGroups
from maxp.fold import fold
from maxp.initial import draw, own_weights, site_seeds
from maxp.mark import marked
from maxp.measurement import Measurement
from maxp.module import find_sites, is_frozen, weight_owners
from maxp.overrides import AB, check_arguments, resolve, resolve_exponents
from maxp.plan import Plan
from maxp.schedules import unwrapped
from maxp.shards import agreed, of_first_rank
from maxp.trace import call_model, graph_of
from maxp.w0 import InitialWeights, other_tensors

logger = logging.getLogger(__name__)


class Parametrization(ParamGroups):
    """Initialises a model's sites and holds their exponents and learning rates.

    The constructor finds the sites, draws their weights, zeroes their biases, sets their
    multipliers, solves the program and builds ``param_groups``. These are, in order:

    - one group per site, with its learning rate ``lr`` and the site's ``name``;
    - one group, called ``"SITE.bias"``, per bias with a learning rate of its own: an update of it
      moves the output by the same amount at every width. With Adam, only the biases of sites whose
      a is not 0 have such a group; with SGD, all biases of sites;
    - one group, called ``"rest"``, for every other parameter that is trained, at ``lr_prefactor``.
      With ``depth``, those inside blocks form the group ``"rest.inside"``. With ``weight_decay``,
      parameters with less than two dimensions form groups whose names end in ``".no_decay"``,
      unless the rest has no others.

    Args:
        model: contains `ParametrizedModule` or other `Site` modules; or any model, whose sites are
            then marked by comparison with ``base`` (`maxp.mark`). It may be on the meta device,
            sharded (DTensor weights), or wrapped in DistributedDataParallel. Ranks take the seed,
            the base and each solution of the first rank.
        optimizer_type: ``"adam"`` or ``"sgd"``.
        alignment: the preset that is used until alignment is measured: ``"full"``, which gives
            muP's learning rates, or ``"no"``.
        lr_prefactor: the learning rate that n^-c multiplies. To apply a schedule, set the attribute
            of this name between steps.
        std_prefactor: multiplies every initial standard deviation.
        ab_overrides: (a, b) by site name, suffix of a site name, or layer type; or three pairs, for
            embedding, hidden and readout. `PARAMETRIZATIONS` contains the usual ones.
        c_overrides: c by the same keys. The c of these sites is fixed.
        alignment_overrides: (z0_dW, dZ_w0, dZ_dW) by the same keys. These sites are not measured.
        sample_input: an input for one forward pass, in which the graph of the sites is traced; or a
            `Graph`. None assumes a chain of the sites in order of definition.
        warmup_steps: the number of calls in which `step` does not measure.
        solve_interval: `step` measures and solves every ``solve_interval`` calls after the warm-up.
        sample_size: how many tokens of a batch are measured.
        c_ema: weight of the previous c in the average with a newly solved one.
        alignment_ema: the same, for measured alignment.
        resample_w0: do not store the initial weights of sites; draw them again when they are
            needed. While `step` runs the model with them, a copy of the current ones is held.
        use_training_activations: take activations from training's last forward pass with gradients
            instead of running another one on ``x``. They are then those before the last update, and
            in training mode. If the batches of ranks differ, the first rank's is measured on.
        solver: any PuLP solver; None is HiGHS, in process.
        warm_start: start each solve from the previous solution.
        seed: seeds the initial weights; None draws a seed from torch's global generator.
        measure_bilinear: let the measured exponents of sites without a weight enter the program.
            They are noisy, because the logarithm of the width is small. They are always reported.
        alignment_bounds: bounds on measured alignments of sites with a weight, before they enter
            the program. None uses measured values as they are: c then depends on the depth.
        base: the base model, whose widths n_base and multipliers s_base exponents refer to: n^-a
            becomes s_base (n / n_base)^-a, and so on. At the base's own width, every (a, b) and
            every c gives the same run. It is a module with the same sites, on any device, before
            its own `Parametrization`; or the `Plan` of `maxp.mark`; or a mapping of site name,
            suffix or layer type to n_base. With ``depth``, a module may have fewer blocks.
            None: n_base = s_base = 1. A site without a weight keeps n^-a with every base.
        base_std: the standard deviations of the base's initial weights, by the keys of
            ``ab_overrides``. The default is the rms of the base's weights; or, if it has no values,
            1 for an embedding that is looked up, fan_in^-1/2 for another embedding, and n_base^-1/2
            for other sites. ``std_prefactor`` multiplies them.
        lr_multipliers: gamma, a factor on the learning rates of weights, by the keys of
            ``ab_overrides``. The key ``"rest"`` is for all other parameters, biases included.
        std_multipliers: the same, for initial standard deviations; without ``"rest"``.
        weight_decay: the decay of AdamW in ``param_groups``, which follows the exponents: a step's
            decay is lr_prefactor gamma weight_decay at every width. Biases, and other parameters
            with less than two dimensions, have none. None leaves the optimizer's own constant.
        eps: the same, for Adam's eps, which follows the size of the gradients.
        depth: how much deeper the model is than the base, and where residual branches end.

    Attributes:
        c: the c in use, by site.
        targets: the c of the last solution, by site; differs from ``c`` if ``c_ema`` is not 0.
        r: by site or join, the exponent of the output's change for the c in use.
        measured: the last measured exponents by site. None where a term was zero, or before the
            first measurement.
        refused: by site, how many measured exponents were NaN or infinite. The previous value was
            kept.
        bounded_values: by site, how many measured values a bound changed.
        zero_terms: by site, how many measured terms were exactly zero. The previous value was kept.
        infeasible: how many programs had no solution. The previous c was kept.
        own_parameters: the parameter, or the list of parameters, of each group but the last.
        rest: the name of the last group: ``"rest"``, or ``".rest"`` if a site is called ``rest``.

    Raises:
        ValueError: no site found; an unknown alignment, optimizer_type or override; an (a, b) that
            breaks its layer type's condition at init; a weight that two sites share; a base with
            other sites or layer types; a multiplier that is not positive; eps with SGD.
        InfeasibleProgramError: no c keeps every r >= 0 (possible with ``c_overrides``).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer_type: OptimizerType = "adam",
        alignment: str = "full",
        lr_prefactor: float = 1e-3,
        std_prefactor: float = 1.0,
        ab_overrides: Mapping[str, AB] | Sequence[AB] | None = None,
        c_overrides: Mapping[str, float] | None = None,
        alignment_overrides: Mapping[str, tuple[float, float, float]] | None = None,
        sample_input: Any = None,
        warmup_steps: int = 0,
        solve_interval: int = 1,
        sample_size: int = 32,
        c_ema: float = 0.0,
        alignment_ema: float = 0.0,
        resample_w0: bool = False,
        use_training_activations: bool = False,
        solver: Any = None,
        warm_start: bool = False,
        seed: int | None = None,
        measure_bilinear: bool = False,
        alignment_bounds: AlignmentBounds | None = BOUNDS,
        base: Base | Plan | None = None,
        base_std: Mapping[str, float] | None = None,
        lr_multipliers: Mapping[str, float] | None = None,
        std_multipliers: Mapping[str, float] | None = None,
        weight_decay: float | None = None,
        eps: float | None = None,
        depth: Depth | None = None,
    ) -> None:
        check_arguments(
            alignment, c_ema=c_ema, alignment_ema=alignment_ema, warmup_steps=warmup_steps,
            lr_prefactor=lr_prefactor, std_prefactor=std_prefactor, solve_interval=solve_interval,
            sample_size=sample_size, weight_decay=weight_decay, eps=eps,
        )  # fmt: skip
        # The wrapper's forward pass would wait for other ranks, and its name would enter seeds.
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        self.model = model
        self._folded = False
        self.plan = marked(model, base, fewer_blocks=depth is not None)
        if self.plan is not None:
            base, base_std = self.plan.widths, {**self.plan.stds, **(base_std or {})}
        assert not isinstance(base, Plan)
        self.sites = find_sites(model)
        if not self.sites:
            raise ValueError(
                "no site found: pass a base, wrap layers in ParametrizedModule, or call mark"
            )
        check_sites(self.sites)
        warn_of_unmarked(model, base)
        owners = weight_owners(self.sites)
        self.weights = own_weights(self.sites, owners)
        held = dict(alignment_overrides or {})
        check_alignments(held)
        exponents = resolve_exponents(
            self.sites, PRESETS[alignment], ab_overrides, dict(c_overrides or {}), held
        )
        bases = resolve_base(
            self.sites, base, base_std, std_multipliers, std_prefactor,
            fewer_blocks=depth is not None,
        )  # fmt: skip
        # Other ranks may have other seeds, and a base of other weights.
        self.seed, bases = agreed(
            (int(torch.randint(2**62, ()).item()) if seed is None else seed, bases)
        )
        gammas = positive("lr_multipliers", lr_multipliers, self.sites, "rest")
        if depth is not None:
            depth.check_branches(self.sites)
            check_branches(self.sites, depth.branch_scale)
        for name, site in self.sites.items():
            at = bases[name]
            site.scale = at.scale * at.ratio ** -exponents[name].a
            site.scale *= depth.branch_scale(name) if depth else 1.0
        tied = {name: owner for name, owner in owners.items() if owner in self.weights}
        self._owners = {**{name: name for name in self.weights}, **tied}
        self._seeds = site_seeds(self.seed, self._owners)
        self._stds = {
            name: bases[owner].std * bases[owner].ratio ** -exponents[owner].b
            for name, owner in self._owners.items()
        }
        draw(self.sites, self.weights, self._seeds, self._stds)

        self._resample_w0 = resample_w0
        self._with_tied = {n: s.weight for n, s in self.sites.items() if s.weight is not None}
        measurable = {
            name: site
            for name, site in self.sites.items()
            if site.layer_type != "embedding"
            and resolve(name, site, held) is None
            and isinstance(site, nn.Module)
            and not is_frozen(site)
        }
        super().__init__(
            graph_of(model, self.sites, sample_input),
            exponents,
            optimizer_type,
            measurable,
            c_ema=c_ema,
            alignment_ema=alignment_ema,
            measure_bilinear=measure_bilinear,
            solver=solver,
            warm_start=warm_start,
            alignment_bounds=alignment_bounds,
        )
        self.steps, self.warmup_steps, self.solve_interval = 0, warmup_steps, solve_interval
        self._measured_weights = {n: w for n, w in self._with_tied.items() if n in measurable}
        self._measurement = Measurement(
            model,
            measurable,
            self._measured_weights,
            initial_weights=self._initial_weights,
            forward=self.forward,
            sample_size=sample_size,
            from_training=use_training_activations,
        )
        if self.plan is not None:
            self.plan.parametrization = self
        self._make_groups(
            model,
            {name: at.ratio for name, at in bases.items()},
            {name: resolve(name, self.sites[name], gammas) or 1.0 for name in self.weights}
            | {"rest": gammas.get("rest", 1.0)},
            depth,
            lr_prefactor,
            {"weight_decay": weight_decay, "eps": eps},
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

        Args:
            x: a fixed probe: a tensor, or a tuple or dict of the model's arguments, the same on
                every rank. A copy is kept, and the sites' inputs on it are stored, so that
                measuring on it takes one forward pass instead of two. None: no fixed probe.
            any_batch: also store all other parameters and floating-point buffers, from which the
                initial activations of any batch are computed. False saves this memory; `step` then
                measures on ``x`` alone.

        Raises:
            ValueError: with ``resample_w0``, if the weights have changed since they were drawn; if
                a site has been replaced by another module; if ``x`` is empty, contains NaN, or does
                not reach every site; or if it is None and ``any_batch`` is False.
        """
        self._check_not_folded()
        check_in_model(self.sites, self.model)
        if x is None and not any_batch:
            raise ValueError("any_batch=False needs a fixed probe: pass x")
        self._measurement.capture(x, any_batch=any_batch)

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
            ValueError: no alignment can be measured on ``x``: it is empty, contains NaN, does not
                reach every site, or a site reads other tokens than with the initial weights.
        """
        self._check_not_folded()
        optimizer = unwrapped(optimizer)
        self._measurement.check(x)
        if optimizer is not self._optimizer and self._stepped_otherwise(optimizer):
            logger.warning(
                "the optimizer has stepped with other learning rates than those of param_groups; "
                "call apply(optimizer) after optimizer.load_state_dict"
            )
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
        self.set_measured(self._measurement.exponents(x))
        return self.measured

    def fold(self) -> None:
        """Write all multipliers into the weights, and turn marked modules into ordinary ones.

        The model's outputs stay the same, and anything that loads such a model can load it. A tied
        weight whose roles have different multipliers is untied. Call it after training: `step`
        and `capture_initial` then raise.
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
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Load the states of the model and the optimizer separately.

        An optimizer that loads a state after ``lr_prefactor`` has been set keeps the learning rates
        of that state until `apply` or `step`.

        Raises:
            ValueError: the state is of a model with other sites, or with other multipliers.
        """
        # A state of an earlier version does not contain the multipliers.
        check_scales(self.sites, state.get("scales", {}))
        self.load_solution_state(state)
        self.steps, self.seed = state["steps"], state["seed"]
        self._seeds = site_seeds(self.seed, self._owners)
        self._lr_prefactor = state["lr_prefactor"]
        if state["measurement"] is not None:
            self._measurement.load_state_dict(state["measurement"])
        self.apply()
