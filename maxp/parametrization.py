"""`Parametrization`: initialises and scales a model's sites, and sets their learning rates.

It is built once before training. `Parametrization.step` then measures the alignment of the run and
solves the program again. Source: Kilian and Wojnar 2025, on the program of Everett et al. 2024
(arXiv 2407.05872).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from maxp.base import Base, positive, resolve_base
from maxp.bounds import BOUNDS, AlignmentBounds
from maxp.checks import (
    check_alignments,
    check_branches,
    check_sites,
    warn_of_unmarked,
)
from maxp.depth import Depth
from maxp.experts import is_expert_weight
from maxp.exponents import PRESETS, AdjustLrFn, OptimizerType
from maxp.initial import draw, own_weights, site_seeds
from maxp.mark import marked
from maxp.module import find_sites, is_frozen, weight_owners
from maxp.muon import check_fan_outs, muon_sites
from maxp.overrides import AB, check_arguments, resolve, resolve_exponents
from maxp.plan import Plan
from maxp.shards import agreed
from maxp.stepping import Steps
from maxp.trace import graph_of


class Parametrization(Steps):
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
        optimizer_type: ``"adam"``, ``"sgd"``, or ``"muon"`` for Muon at hidden sites and AdamW for
            all else (`MuonAdamW`). A mapping gives ``"muon"`` or ``"adam"`` by site name, suffix or
            layer type; what it does not name is Adam's.
        adjust_lr_fn: that of `torch.optim.Muon`, which ``param_groups`` contain at Muon's sites:
            ``"original"``, also for None, or ``"match_rms_adamw"``.
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
        fused: for weights that contain several projections, the number of equal blocks of rows, or
            the number of rows of each, by site name or suffix. Each block is measured, and the most
            cautious one counts. Known are ``qkv`` and ``c_attn`` (3 blocks) and ``gate_up_proj``
            (2); 1 is for a weight of such a name that is one projection.

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
        without_tokens: by site, how many experts had no token in both of the two passes that were
            compared. They kept their previous values.
        unmatched: by site, how many of its calls could not be measured, since it is not known which
            tokens its rows belong to. The previous values were kept.
        infeasible: how many programs had no solution. The previous c was kept.
        own_parameters: the parameter, or the list of parameters, of each group but the last.
        rest: the name of the last group: ``"rest"``, or ``".rest"`` if a site is called ``rest``.

    Raises:
        ValueError: no site found; an unknown alignment, optimizer_type or override; an (a, b) that
            breaks its layer type's condition at init; a weight that two sites share; a base with
            other sites or layer types; a multiplier that is not positive; eps with SGD; Muon for a
            weight that is no hidden matrix, or whose fan-out does not grow; an unknown
            adjust_lr_fn, or one without Muon.
        InfeasibleProgramError: no c keeps every r >= 0 (possible with ``c_overrides``).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer_type: OptimizerType | Literal["muon"] | Mapping[str, str] = "adam",
        adjust_lr_fn: AdjustLrFn | None = None,
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
        fused: Mapping[str, int | Sequence[int]] | None = None,
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
        muons = muon_sites(self.sites, optimizer_type, adjust_lr_fn)
        check_fan_outs(self.plan.weights if self.plan else (), muons)
        exponents |= {n: replace(exponents[n], adjust_lr_fn=fn) for n, fn in muons.items()}
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
        keep_bias = {w.name for w in self.plan.weights if w.keeps_bias} if self.plan else set()
        draw(self.sites, self.weights, self._seeds, self._stds, keep_bias)

        graph = graph_of(model, self.sites, sample_input)
        uncalled = {node.site for node in graph.sites if not node.is_called}
        measurable = {
            name: site
            for name, site in self.sites.items()
            if name not in uncalled
            and site.layer_type != "embedding"
            and resolve(name, site, held) is None
            and (isinstance(site, nn.Module) or is_expert_weight(site))
            and not is_frozen(site)
        }
        super().__init__(
            graph,
            exponents,
            "sgd" if optimizer_type == "sgd" else "adam",
            measurable,
            c_ema=c_ema,
            alignment_ema=alignment_ema,
            measure_bilinear=measure_bilinear,
            solver=solver,
            warm_start=warm_start,
            alignment_bounds=alignment_bounds,
        )
        self._prepare_steps(
            measurable,
            warmup_steps=warmup_steps,
            solve_interval=solve_interval,
            sample_size=sample_size,
            resample_w0=resample_w0,
            use_training_activations=use_training_activations,
            fused=fused,
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
