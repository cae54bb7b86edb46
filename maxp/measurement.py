"""Measures alignment on a batch, against its initial activations and the initial weights."""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from maxp.alignment import Measured, SiteState, bilinear_alignment, measure
from maxp.base import without_numbers
from maxp.capture import Capture, Inputs, expert_name, expert_of, site_of
from maxp.experts import is_expert_weight
from maxp.matching import UNMATCHED, common
from maxp.module import Site
from maxp.packing import pack, same, unpack
from maxp.parts import Block, mean, most_cautious, states
from maxp.passes import passing
from maxp.shards import of_first_rank, reshard, whole_columns
from maxp.w0 import InitialWeights


class Measurement:
    """Measures the alignment of sites on a fixed probe or on any batch.

    The initial activations of the probe are stored. Those of another batch are computed by a
    forward pass with the initial weights.

    Args:
        model: the model that contains the sites.
        sites: the sites to measure, by name. An embedding has no alignment.
        weights: the weights of those sites that have one, by name.
        initial_weights: returns the `InitialWeights` of the present weights; `capture` calls it.
        forward: runs the model on a batch.
        sample_size: the number of tokens of a batch that are measured.
        from_training: take activations from the last of training's own forward passes.
        blocks: the blocks of rows (start, stop) of each fused projection, by site.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Mapping[str, Site],
        weights: Mapping[str, torch.Tensor],
        *,
        initial_weights: Callable[[], InitialWeights],
        forward: Callable[[Any], Any],
        sample_size: int,
        from_training: bool,
        blocks: Mapping[str, Sequence[Block]] | None = None,
    ) -> None:
        self._model, self._sites, self._weights = model, dict(sites), weights
        self._make_initial_weights, self._forward = initial_weights, forward
        self._capture = Capture(self._sites, sample_size)
        self._from_training, self._blocks = from_training, dict(blocks or {})
        # The arguments (args, kwargs) of training's last forward pass, and the sites' inputs in it.
        self._seen_in_training: tuple[Any, Inputs] | None = None
        # Whether data selects the rows of sites; None if nothing has suggested it. And the names of
        # such sites, without numbers.
        self._routed: bool | None = None
        self._experts: set[str] = set()
        # (site, reason) of what the last measurement left out.
        self.missed: Counter[tuple[str, str]] = Counter()
        self._watching = False
        self._opened: list[Any] = []
        self._given: Any = None
        self.probe: Any = None
        self.z0: Inputs | None = None
        self.w0: InitialWeights | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load a pickle, which may be of a version that did not know of routing or blocks."""
        new: dict[str, Any] = {
            "_routed": None,
            "_experts": set(),
            "missed": Counter(),
            "_blocks": {},
        }
        self.__dict__.update(new | state)

    def capture(self, x: Any, *, any_batch: bool = True) -> None:
        """Make the present weights the initial ones; and ``x``, unless it is None, the probe.

        Args:
            any_batch: store what measuring on other batches than the probe needs.

        Raises:
            ValueError: W0 is drawn again when needed, and a weight has changed since it was drawn;
                or no alignment can be measured on ``x``.
        """
        if isinstance(x, Mapping):
            x = dict(x)  # what a tokenizer of transformers returns would be copied as one object
        reshard(self._model)
        w0 = self._make_initial_weights()
        w0.check_redrawn()
        if x is not None:
            _check(x)
        if any_batch:
            w0.keep_others()
        self.w0 = w0
        # A copy: the caller may use the tensor again for other values.
        self._given, self.probe = x, tree_map_only(torch.Tensor, torch.clone, x)
        self.z0 = None if x is None else self._run(self.probe)
        self._seen_in_training = None
        self._watch_training()

    def check(self, x: Any) -> None:
        """Check that there is something to measure on: a batch ``x``, or the probe if it is None.

        Raises:
            RuntimeError: `capture` has not been called; or there is no probe, and ``x`` is None.
        """
        if self.w0 is None:
            raise RuntimeError("call capture_initial(x) before training, then step(x, optimizer)")
        if x is None and self.probe is None and not self._from_training:
            raise RuntimeError(
                "there is no fixed probe, since capture_initial received None: pass a batch to step"
            )

    def exponents(self, x: Any = None) -> dict[str, Measured]:
        """The measured exponents of every site. `missed` counts what could not be measured.

        Args:
            x: the batch to measure on, the same on every rank; None is the probe. It is not used if
                activations come from training.

        Raises:
            RuntimeError: as `check`; or activations come from training, which has not run the
                model since the last call.
            ValueError: no alignment can be measured on ``x``.
        """
        self.check(x)
        assert self.w0 is not None
        z0, z = self._inputs_in_training() if self._from_training else self._inputs(x)
        self.missed = Counter()
        of_sites: dict[str, list[Measured]] = {name: [] for name in self._sites}
        parts: list[tuple[str, list[SiteState]]] = []
        for name, call in self._calls(z0, z):
            before, now = z0.get(call), z.get(call)
            if name not in self._weights and _alike(before, now):
                (q0, k0), (q, k) = z0[call], z[call]
                width = self._sites[name].width_dim
                of_sites[name].append(bilinear_alignment(q0, k0, q, k, width))
            elif name not in self._weights:
                self.missed[name, UNMATCHED] += 1
            elif isinstance(inputs := common(before, now), str):
                self.missed[name, inputs] += 1
            else:
                parts += [(name, part) for part in self._states(name, call, inputs)]
        of_states = iter(measure([state for _, part in parts for state in part]))
        for name, part in parts:
            of_sites[name].append(mean([next(of_states) for _ in part]))
        return {name: most_cautious(calls) for name, calls in of_sites.items() if calls}

    def _calls(self, z0: Inputs, z: Inputs) -> list[tuple[str, str]]:
        """(site, call) of every call in one of two passes, and of experts without tokens."""
        calls: dict[str, dict[str, None]] = {name: {} for name in self._sites}
        for call in (*z0, *z):
            calls[site_of(call)][call] = None
        for name, site in self._sites.items():
            if is_expert_weight(site):
                calls[name] |= dict.fromkeys(expert_name(name, e) for e in range(len(site.weight)))
            elif not calls[name]:
                calls[name][name] = None
        return [(name, call) for name, of_site in calls.items() for call in of_site]

    def _states(
        self, name: str, call: str, inputs: tuple[torch.Tensor, torch.Tensor]
    ) -> list[list[SiteState]]:
        assert self.w0 is not None
        site, weight = self._sites[name], self._weights[name]
        expert = expert_of(call) if is_expert_weight(site) else None
        return states(site, weight, self.w0.rows(name), inputs, self._blocks.get(name), expert)

    def _inputs(self, x: Any) -> tuple[Inputs, Inputs]:
        """The sites' inputs on ``x``, with the initial and with the current weights."""
        if self.z0 is not None and (x is None or x is self._given or same(x, self.probe)):
            return self.z0, self._run(self.probe)
        _check(x)
        return self._run_initial(lambda: self._forward(x)), self._run(x)

    def _inputs_in_training(self) -> tuple[Inputs, Inputs]:
        """The same on training's last batch, with the weights that training ran it with."""
        if self._seen_in_training is None:
            raise RuntimeError(
                "use_training_activations: training has not run the model since the last "
                "measurement; call step after a forward pass, or set use_training_activations=False"
            )
        seen, self._seen_in_training = self._seen_in_training, None
        # The batches of ranks differ under data parallelism.
        batch, z = of_first_rank(seen, self._weights.values())
        if self.z0 is not None and same(batch, self.probe):
            return self.z0, z
        args, kwargs = batch
        return self._run_initial(lambda: self._model(*args, **kwargs)), z

    def _run_initial(self, forward: Callable[[], Any]) -> Inputs:
        assert self.w0 is not None
        reshard(self._model)  # a gathered weight is a copy, which would keep the current values
        with self.w0.in_model():
            return self._watched(forward)

    def _run(self, x: Any) -> Inputs:
        return self._watched(lambda: self._forward(x))

    def _watched(self, forward: Callable[[], Any]) -> Inputs:
        if self._routed and not self._from_training:
            seen = self._pass(forward, tokens=True)
        else:
            seen = self._pass(forward, tokens=False)
            if self._routed or (self._routed is None and self._may_be_routed(seen)):
                followed = self._pass(forward, tokens=True)
                self._routed = self._routed or bool(self._capture.selected)
                # Training's own passes record no tokens, so there the others stay in position.
                changed = self._capture.selected if self._from_training else followed
                seen |= {call: followed[call] for call in changed if self._routed}
        return self._complete(seen)

    def _pass(self, forward: Callable[[], Any], *, tokens: bool) -> Inputs:
        with passing(self._model), self._capture.watching(tokens=tokens) as seen:
            forward()
        return seen

    def _may_be_routed(self, seen: Inputs) -> bool:
        """Whether sites read different numbers of rows, as experts do, or some read none."""
        reached = {site_of(call) for call in seen}
        return len({*self._capture.rows.values()}) > 1 or not reached >= self._sites.keys()

    def _complete(self, seen: Inputs) -> Inputs:
        """Check that every site was reached, and gather the columns that ranks split."""
        reached = {site_of(call) for call in seen}
        # An expert may have no tokens, if others of its layer or of another layer have some.
        self._experts |= {without_numbers(site_of(call)) for call in self._capture.selected}
        missed = [
            n for n in self._sites if n not in reached and without_numbers(n) not in self._experts
        ]
        if missed:
            raise ValueError(
                f"a forward pass does not reach {', '.join(missed)}; if other code reads the "
                "weight instead of calling the module, pass sample_input to Parametrization"
            )
        for call, inputs in seen.items():
            # Not site.weight: during a forward pass FSDP replaces it.
            weight = self._weights.get(site_of(call))
            if weight is not None and weight.ndim == 2:
                seen[call] = (whole_columns(inputs[0], weight), *inputs[1:])
        return seen

    def _watch_training(self) -> None:
        """Record the arguments and the sites' inputs of each of training's forward passes."""
        if not self._from_training or self._watching:
            return
        self._watching = True
        self._model.register_forward_pre_hook(self._before_training_pass, with_kwargs=True)
        # Also after a forward pass that raised, or its hooks would stay.
        self._model.register_forward_hook(self._after_training_pass, always_call=True)

    def _before_training_pass(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if torch.is_grad_enabled():
            watching = self._capture.watching()
            self._opened.append((watching, watching.__enter__(), _copied((args, kwargs))))

    def _after_training_pass(self, *_: Any) -> None:
        if not self._opened:
            return
        watching, seen, batch = self._opened.pop()
        watching.__exit__(None, None, None)
        # Activation checkpointing stops a pass that it runs again once it has what it needs.
        reached = {site_of(call) for call in seen}
        if all(n in reached or without_numbers(n) in self._experts for n in self._sites):
            self._seen_in_training = batch, self._complete(seen)

    def state_dict(self) -> dict[str, Any]:
        """The probe, z0, the stored initial values, and what `exponents` has not used of training.

        The last is in bytes, so that the keys do not depend on it.
        """
        assert self.w0 is not None
        seen = io.BytesIO()
        if self._seen_in_training is not None:
            batch, z = self._seen_in_training
            torch.save((batch, pack(z)), seen)
        others = self.w0.others()
        return {
            "probe": self.probe,
            "z0": None if self.z0 is None else pack(self.z0),
            "w0": self.w0.kept(),
            "seen": seen.getvalue() or None,
            **({} if others is None else {"others": others}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; tensors are moved to the device of the weights.

        A state without ``others`` allows measuring on the probe alone.

        Raises:
            ValueError: W0 is drawn again when needed, and the earlier run's W0 was not drawn.
        """
        device = next(iter(self._model.parameters()), torch.empty(0)).device
        state = tree_map_only(torch.Tensor, lambda t: t.to(device), dict(state))
        self._given, self.probe = None, state["probe"]
        self.z0 = None if state["z0"] is None else unpack(state["z0"])
        # The tokens in z0 were recorded because data selects rows.
        modules = {n for n in self._weights if isinstance(self._sites[n], nn.Module)}
        recorded = [z for call, z in (self.z0 or {}).items() if site_of(call) in modules]
        self._routed = any(len(z) == 2 for z in recorded) or None
        seen = state["seen"]
        if isinstance(seen, bytes):
            batch, packed = torch.load(io.BytesIO(seen), map_location=device, weights_only=True)
            self._seen_in_training = batch, unpack(packed)
        else:  # of an earlier version, which saw training only on the probe
            self._seen_in_training = None if seen is None else (self.probe, unpack(seen))
        reshard(self._model)
        self.w0 = self._make_initial_weights()
        self.w0.restore(state["w0"], state.get("others"))
        self._watch_training()


def _alike(before: tuple[torch.Tensor, ...] | None, now: tuple[torch.Tensor, ...] | None) -> bool:
    """Whether a call was recorded in both of two passes, with equal shapes."""
    if before is None or now is None:
        return False
    return all(a.shape == b.shape for a, b in zip(before, now, strict=True))


def _check(x: Any) -> None:
    """Check that a batch has entries, and that they are numbers.

    Raises:
        ValueError: it has none, or one of them is NaN.
    """
    tensors = [leaf for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor)]
    if tensors and all(tensor.numel() == 0 for tensor in tensors):
        raise ValueError("x is empty: alignment is measured on tokens; pass a batch that has some")
    if any(t.is_floating_point() and bool(t.isnan().any()) for t in tensors):
        raise ValueError(
            "x contains NaN, so no alignment can be measured on it; pass another batch"
        )


def _copied(x: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: t.detach().clone(), x)
