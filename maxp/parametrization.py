"""`Parametrization`: initialises and scales a model's sites, and sets their learning rates.

It is built once before training. `Parametrization.step` then measures the alignment of the run and
solves the program again. Source: Kilian and Wojnar 2025, on the program of Everett et al. 2024
(arXiv 2407.05872).
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
from maxp.groups import group_name, own_biases, set_lrs, split_group
from maxp.measurement import Measurement
from maxp.module import bias_of, find_sites
from maxp.overrides import AB, check_arguments, resolve, resolve_exponents
from maxp.shards import local, of_first_rank
from maxp.site_exponents import SiteExponents
from maxp.trace import call_model, graph_of
from maxp.w0 import InitialWeights, draw_like, other_tensors, site_seed

logger = logging.getLogger(__name__)


class Parametrization(SiteExponents):
    """Initialises a model's sites and holds their exponents and learning rates.

    The constructor finds the sites, draws their weights, zeroes their biases, sets their
    multipliers, solves the program and builds ``param_groups``. These are, in order:

    - one group per site, with its learning rate ``lr`` and the site's ``name``;
    - one group, called ``"SITE.bias"``, per bias with a learning rate of its own: an update of it
      moves the output by the same amount at every width. With Adam, only the biases of sites whose
      multiplier is not 1 have such a group; with SGD, all biases of sites;
    - one group, called ``"rest"``, for every other parameter, at ``lr_prefactor``.

    Args:
        model: contains `ParametrizedModule` or other `Site` modules. It may be on the meta device,
            or sharded (DTensor weights).
        optimizer_type: ``"adam"`` or ``"sgd"``.
        alignment: the preset that is used until alignment is measured: ``"full"``, which gives
            muP's learning rates, or ``"no"``.
        lr_prefactor: the learning rate that n^-c multiplies. To apply a schedule, set the attribute
            of this name between steps.
        std_prefactor: multiplies every initial standard deviation n^-b.
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

    Attributes:
        c: the c in use, by site.
        targets: the c of the last solution, by site; differs from ``c`` if ``c_ema`` is not 0.
        r: by site or join, the exponent of the output's change for the c in use.
        measured: the last measured exponents by site. None where a term was zero, or before the
            first measurement.
        refused: by site, how many measured exponents were NaN or infinite. The previous value was
            kept.
        zero_terms: by site, how many measured terms were exactly zero. The previous value was kept.
        infeasible: how many programs had no solution. The previous c was kept.
        own_parameters: the parameters with a learning rate of their own, by group name.
        rest: the name of the last group: ``"rest"``, or ``".rest"`` if a site is called ``rest``.

    Raises:
        ValueError: no site found; an unknown alignment, optimizer_type or override; an (a, b) that
            breaks its layer type's condition at init; a weight that two sites share.
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
        check_arguments(
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
                measured_weights,
                self._seeds,
                self._stds,
                resample=resample_w0,
                others=lambda: other_tensors(model, self.weights, measured_weights),
            ),
            forward=self.forward,
            sample_size=sample_size,
            from_training=use_training_activations,
        )
        self._lr_prefactor = lr_prefactor
        self.rest = group_name("rest", self.sites)
        biases = own_biases(self.sites, exponents, optimizer_type)
        self._bias_groups = {group: site for group, (site, _) in biases.items()}
        self.own_parameters = {**self.weights, **{group: b for group, (_, b) in biases.items()}}
        parameters = {id(p): p for p in (*self.own_parameters.values(), *model.parameters())}
        whole = {"params": list(parameters.values())}
        self.param_groups = split_group(whole, self.own_parameters, self.rest)
        self._optimizer: Optimizer | None = None
        self.apply()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Draw every weight that is not on the meta device, and zero its site's bias."""
        for name, weight in self.weights.items():
            if weight.is_meta:
                continue
            local(weight).copy_(draw_like(weight, self._seeds[name], self._stds[name]))
            bias = bias_of(self.sites[name])
            if bias is not None:
                bias.zero_()

    # Learning rates

    def lr_factors(self) -> dict[str, float]:
        """n^-c by param group name; 1 for the rest."""
        g = gradient_exponent(self.graph, self._exponents, self.c, self._optimizer_type)
        factors = {self.rest: 1.0}
        for name, c in self.c.items():
            factors[name] = self.sites[name].width_dim ** -c
        for group, name in self._bias_groups.items():
            node = self.graph.nodes[name]
            assert isinstance(node, SiteNode)
            c = bias_exponent(node, self._exponents[name], self._optimizer_type, g)
            factors[group] = self.sites[name].width_dim ** -c
        return factors

    def lrs(self) -> dict[str, float]:
        """The learning rates, lr_prefactor * n^-c, by param group name."""
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
            ValueError: with ``resample_w0``, if the weights have changed since they were drawn; or
                if ``x`` is empty, contains NaN, or does not reach every site; or if ``x`` is None
                and ``any_batch`` is False.
        """
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
        self._measurement.check(x)
        if optimizer is not self._optimizer and self._stepped_otherwise(optimizer):
            logger.warning(
                "the optimizer has stepped with other learning rates than those of param_groups; "
                "call apply(optimizer) after optimizer.load_state_dict"
            )
        self.steps += 1
        if self.due(self.steps):
            self.measure(of_first_rank(x, self.weights.values()))
            self.solve()
        self.apply(optimizer)

    def _stepped_otherwise(self, optimizer: Optimizer) -> bool:
        lrs = {group["name"]: group["lr"] for group in self.param_groups}
        return any(g["lr"] != lrs.get(g.get("name"), g["lr"]) for g in optimizer.param_groups)

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
            "measurement": self._measurement.state_dict() if measuring else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Load the states of the model and the optimizer separately.

        An optimizer that loads a state after ``lr_prefactor`` has been set keeps the learning rates
        of that state until `apply` or `step`.

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
