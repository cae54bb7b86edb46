"""`Parametrization`: a model's sites initialised, scaled and given learning rates that transfer.

Built once before training; with measurement it then follows the alignment of the run and solves the
program again (`Parametrization.step`). Source: Kilian and Wojnar 2025, on the program of Everett et
al. 2024 (arXiv 2407.05872).
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from maxp.alignment import Measured
from maxp.exponents import PRESETS, OptimizerType, bias_exponent, gradient_exponent
from maxp.graph import SiteNode
from maxp.groups import group_name, set_lrs, split_group
from maxp.measurement import Measurement
from maxp.module import bias_of, find_sites
from maxp.overrides import AB, resolve, resolve_exponents
from maxp.shards import local
from maxp.site_exponents import SiteExponents
from maxp.trace import call_model, graph_of
from maxp.w0 import InitialWeights, draw_like, site_seed

logger = logging.getLogger(__name__)


class Parametrization(SiteExponents):
    """Initialises a model's sites and holds their exponents and learning rates.

    At construction: find the sites, draw their weights, set their multipliers, solve the program,
    and build ``param_groups``: one a site with its ``lr`` and ``name``; one for the bias of a site
    whose multiplier is not 1, and with SGD of any site (with the c at which a bias moves the output
    by a constant); and last, at ``lr_prefactor``, one for all that is not a site.

    Args:
        model: holds `ParametrizedModule` or other `Site` modules; may be on the meta device, or
            sharded (DTensor weights).
        optimizer_type: ``"adam"`` or ``"sgd"``.
        alignment: the preset that holds until something is measured: ``"full"`` (which gives muP's
            learning rates) or ``"no"``.
        lr_prefactor: the learning rate that n^-c multiplies. Setting the attribute of this name
            between steps applies a schedule.
        std_prefactor: multiplies every initial standard deviation n^-b.
        ab_overrides: (a, b) by site name, suffix of a name or layer type; or three pairs, of
            embedding, hidden and readout. `PARAMETRIZATIONS` has the usual ones.
        c_overrides: c by the same keys; such a site's c is held.
        alignment_overrides: (z0_dW, dZ_w0, dZ_dW) by the same keys; such a site is never measured.
        sample_input: trace the flow between sites in one forward pass on this and solve on that
            graph (a ready `Graph` is taken as it is); without it, a chain in order of definition.
        warmup_steps: `step` does nothing for so many calls.
        solve_interval: after these, measure and solve at every so manieth call.
        sample_size: how many tokens of the probe are measured.
        c_ema, alignment_ema: weight of the previous value of c, and of the previous measured
            alignment, when a new one arrives; 0 follows at once.
        resample_w0: keep no copy of the initial weights; draw them again when they are needed.
        use_training_activations: take activations from training's own forward passes on the probe
            instead of running another (for full-batch training, or where the probe is one of the
            batches). They are those of just before the last update.
        solver: any PuLP solver; None is HiGHS in process.
        warm_start: start each solve from the previous solution.
        seed: seeds the initial weights; None draws a seed from torch's global generator.
        measure_bilinear: let the measured exponents of sites without a weight enter the program
            (the logarithm of their width is small, so they are noisy); they are always reported.

    Attributes:
        c: the exponent in use by site; ``targets``: the program's last answer (they differ under
            ``c_ema``); ``alignment``: what the program is given; ``measured``: the last measured
            exponents, None where a term was zero or nothing is measured yet; ``r``: by which
            exponent each site's output changes, for the c in use.
        refused, zero_terms, infeasible: counts of measurements that were NaN or infinite, of terms
            that were exactly zero, and of programs without a solution. In each case the previous
            value is kept.

    Raises:
        ValueError: no site; an unknown alignment, optimizer_type or override; an (a, b) that breaks
            its layer type's condition at init (named); a weight that two sites share.
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
    ) -> None:
        _check_arguments(
            alignment, c_ema=c_ema, alignment_ema=alignment_ema, warmup_steps=warmup_steps,
            lr_prefactor=lr_prefactor, std_prefactor=std_prefactor, solve_interval=solve_interval,
            sample_size=sample_size,
        )  # fmt: skip
        self.model = model
        self.sites = find_sites(model)
        if not self.sites:
            raise ValueError("no site found: wrap layers in ParametrizedModule")
        self.weights: dict[str, torch.Tensor] = {
            name: site.weight for name, site in self.sites.items() if site.weight is not None
        }
        held = dict(alignment_overrides or {})
        exponents = resolve_exponents(
            self.sites, PRESETS[alignment], ab_overrides, dict(c_overrides or {}), held
        )
        for name, site in self.sites.items():
            site.set_a(exponents[name].a)
        self.seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
        self._seeds = {name: site_seed(self.seed, name) for name in self.weights}
        self._stds = {
            name: std_prefactor * self.sites[name].width_dim ** -exponents[name].b
            for name in self.weights
        }
        self._initialise()

        measurable = {
            name: site
            for name, site in self.sites.items()
            if site.layer_type != "embedding" and resolve(name, site, held) is None
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
        )
        self.steps, self.warmup_steps, self.solve_interval = 0, warmup_steps, solve_interval
        measured_weights = {n: w for n, w in self.weights.items() if n in measurable}
        self._measurement = Measurement(
            model,
            measurable,
            measured_weights,
            initial_weights=lambda: InitialWeights(
                measured_weights, self._seeds, self._stds, resample=resample_w0
            ),
            forward=self.forward,
            sample_size=sample_size,
            from_training=use_training_activations,
        )
        self._lr_prefactor = lr_prefactor
        self.rest = group_name("rest", self.sites)
        self.own_parameters = {**self.weights, **self._biases()}
        parameters = {id(p): p for p in (*self.own_parameters.values(), *model.parameters())}
        whole = {"params": list(parameters.values())}
        self.param_groups = split_group(whole, self.own_parameters, self.rest)
        self._optimizer: Optimizer | None = None
        self.apply()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Draw every site's weight, zero its bias; on the meta device there is nothing to draw."""
        for name, weight in self.weights.items():
            if weight.is_meta:
                continue
            local(weight).copy_(draw_like(weight, self._seeds[name], self._stds[name]))
            bias = bias_of(self.sites[name])
            if bias is not None:
                bias.zero_()

    def _bias_group(self, name: str) -> str:
        return group_name(f"{name}.bias", self.sites)

    def _biases(self) -> dict[str, torch.Tensor]:
        """By group name, biases whose c is not 0: all with SGD, else those behind a multiplier."""
        biases = {name: bias_of(self.sites[name]) for name in self.weights}
        return {
            self._bias_group(name): bias
            for name, bias in biases.items()
            if isinstance(bias, nn.Parameter)
            and (self._exponents[name].a != 0 or self._optimizer_type == "sgd")
        }

    # Learning rates

    def lr_factors(self) -> dict[str, float]:
        """n^-c by param group name; 1 for the group of the rest."""
        g = gradient_exponent(self.graph, self._exponents, self.c, self._optimizer_type)
        factors = {self.rest: 1.0}
        for name in self.weights:
            node, e = self.graph.nodes[name], self._exponents[name]
            assert isinstance(node, SiteNode)
            n = self.sites[name].width_dim
            factors[name] = n ** -self.c[name]
            if (bias := self._bias_group(name)) in self.own_parameters:
                factors[bias] = n ** -bias_exponent(node, e, self._optimizer_type, g)
        return factors

    def lrs(self) -> dict[str, float]:
        """lr_prefactor n^-c by param group name."""
        return {name: self._lr_prefactor * f for name, f in self.lr_factors().items()}

    @property
    def lr_prefactor(self) -> float:
        """The learning rate that n^-c multiplies.

        Setting it changes ``param_groups`` and the optimizer that `apply` or `step` last received.
        """
        return self._lr_prefactor

    @lr_prefactor.setter
    def lr_prefactor(self, value: float) -> None:
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"lr_prefactor must be finite and not negative, got {value}")
        self._lr_prefactor = value
        self.apply()

    def apply(self, optimizer: Optimizer | None = None) -> None:
        """Write the learning rates into ``param_groups`` and into the optimizer's groups.

        An optimizer shares its groups with ``param_groups`` only until it loads a state, which
        replaces them. Call ``apply(optimizer)`` after ``optimizer.load_state_dict``; until then, or
        until the next `step`, new learning rates do not reach the optimizer.

        Args:
            optimizer: the optimizer to follow from now on; its groups are matched by ``name``. None
                is the optimizer that `apply` or `step` last received.

        Raises:
            ValueError: the optimizer has none of the groups.
        """
        lrs = self.lrs()
        if optimizer is not None:
            if not any(group.get("name") in lrs for group in optimizer.param_groups):
                raise ValueError(
                    "the optimizer has no group of this model's sites; build it on .param_groups"
                )
            self._optimizer = optimizer
        set_lrs(self.param_groups, lrs)
        if self._optimizer is not None:
            set_lrs(self._optimizer.param_groups, lrs)

    # Measuring and solving

    def forward(self, x: Any) -> Any:
        """One forward pass on the probe; override where a model needs more than a call."""
        return call_model(self.model, x)

    def capture_initial(self, x: Any) -> None:
        """Note the sites' inputs on the probe, and the weights, before training.

        Args:
            x: the probe: a tensor, or a tuple or dict of the model's arguments. It is kept, and
                every measurement is on it.

        Raises:
            ValueError: with ``resample_w0``, when the weights are no longer those that were drawn.
        """
        self._measurement.capture(x)

    def step(self, x: Any, optimizer: Optimizer) -> None:
        """Call after every ``optimizer.step()``: measures and solves when due, and sets the lr.

        Args:
            x: the probe given to `capture_initial`; None stands for it.
            optimizer: built on ``param_groups``; its groups are found by ``name``.

        Raises:
            RuntimeError: before `capture_initial`; or with ``use_training_activations``, when
                training has not run the model on the probe since the last measurement.
            ValueError: another ``x`` than the probe, whose initial activations are not known.
        """
        if self._measurement.z0 is None:
            raise RuntimeError("call capture_initial(x) before training, then step(x, optimizer)")
        self._measurement.check_probe(x)
        if optimizer is not self._optimizer and self._stepped_otherwise(optimizer):
            logger.warning(
                "the optimizer has stepped with other learning rates than those of param_groups; "
                "call apply(optimizer) after optimizer.load_state_dict"
            )
        self.steps += 1
        if self.due(self.steps):
            self.measure()
            self.solve()
        self.apply(optimizer)

    def _stepped_otherwise(self, optimizer: Optimizer) -> bool:
        lrs = {group["name"]: group["lr"] for group in self.param_groups}
        return any(g["lr"] != lrs.get(g.get("name"), g["lr"]) for g in optimizer.param_groups)

    def due(self, step: int) -> bool:
        """Whether the ``step``-th call of `step` measures and solves."""
        after = step - self.warmup_steps
        return after > 0 and after % self.solve_interval == 0

    def measure(self) -> dict[str, Measured]:
        """Measure every site's alignment on the probe, and take it up for the next `solve`."""
        self.set_measured(self._measurement.exponents())
        return self.measured

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to continue exactly.

        Its keys are those of any other state of the same model, so that it can be loaded in place
        (`torch.distributed.checkpoint`).
        """
        measuring = self._measurement.z0 is not None
        return {
            **self.solution_state(),
            "steps": self.steps,
            "seed": self.seed,
            "lr_prefactor": self._lr_prefactor,
            "measurement": self._measurement.state_dict() if measuring else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; the model's and optimizer's states are loaded by themselves.

        Raises:
            ValueError: the state is of a model with other sites.
        """
        self.load_solution_state(state)
        self.steps, self.seed = state["steps"], state["seed"]
        self._seeds = {name: site_seed(self.seed, name) for name in self.weights}
        self._lr_prefactor = state["lr_prefactor"]
        if state["measurement"] is not None:
            self._measurement.load_state_dict(state["measurement"])
        self.apply()


def _check_arguments(alignment: str, **numbers: float) -> None:
    if alignment not in PRESETS:
        raise ValueError(f"alignment must be one of {', '.join(PRESETS)}, got {alignment!r}")
    for name, value in numbers.items():
        if name.endswith("_ema"):
            right, rule = 0 <= value < 1, "must be in [0, 1)"
        elif name == "warmup_steps":
            right, rule = value >= 0, "must not be negative"
        else:
            right, rule = value > 0 and math.isfinite(value), "must be positive"
        if not right:
            raise ValueError(f"{name} {rule}, got {value}")
