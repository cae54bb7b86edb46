"""Measures alignment on a fixed probe, against its initial activations and the initial weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from maxp.alignment import Measured, SiteState, bilinear_alignment, measure
from maxp.capture import Capture, Inputs
from maxp.module import Site
from maxp.shards import whole_columns
from maxp.trace import evaluating
from maxp.w0 import InitialWeights


class Measurement:
    """Measures the alignment of sites on one fixed probe.

    Args:
        model: the model that contains the sites.
        sites: the sites to measure, by name. An embedding has no alignment.
        weights: the weights of those sites that have one, by name.
        initial_weights: returns the `InitialWeights` of the present weights; `capture` calls it.
        forward: runs the model on the probe.
        sample_size: the number of tokens of the probe that are measured.
        from_training: take activations from training's own forward passes on the probe.
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
    ) -> None:
        self._model, self._sites, self._weights = model, dict(sites), weights
        self._make_initial_weights, self._forward = initial_weights, forward
        self._capture = Capture(self._sites, sample_size)
        self._from_training = from_training
        self._seen_in_training: Inputs | None = None
        self._watching = False
        self._given: Any = None
        self.probe: Any = None
        self.z0: Inputs | None = None
        self.w0: InitialWeights | None = None

    def capture(self, x: Any) -> None:
        """Make ``x`` the probe, and the present activations and weights the initial ones.

        Raises:
            ValueError: W0 is drawn again when needed, and a weight has changed since it was drawn.
        """
        w0 = self._make_initial_weights()
        w0.check_redrawn()
        self.w0 = w0
        # A copy: the caller may use the tensor again for other values.
        self._given, self.probe = x, tree_map_only(torch.Tensor, torch.clone, x)
        self.z0, self._seen_in_training = self._run(self.probe), None
        self._watch_training()

    def check_probe(self, x: Any) -> None:
        """Raise ValueError if ``x`` is neither the probe nor None."""
        if x is not None and x is not self._given and not _same(x, self.probe):
            raise ValueError(
                "x is not the probe that capture_initial received: alignment compares the same "
                "tokens before and after training. Pass the same x, or None"
            )

    def exponents(self) -> dict[str, Measured]:
        """The measured exponents of every site.

        Raises:
            RuntimeError: `capture` has not been called; or activations come from training, which
                has not run the model on the probe since the last call.
        """
        if self.z0 is None or self.w0 is None:
            raise RuntimeError("call capture_initial(x) before training, and step(x, ...) after")
        z0, z = self.z0, self._present_inputs()
        weighted = [name for name in self._sites if name in self._weights]
        states = []
        for name in weighted:
            (x0,), (x,) = z0[name], z[name]
            width = self._sites[name].width_dim
            states.append(SiteState(x0, x, self._weights[name], self.w0.rows(name), width))
        exponents = dict(zip(weighted, measure(states), strict=True)) if states else {}
        for name, site in self._sites.items():
            if name not in self._weights:
                (q0, k0), (q, k) = z0[name], z[name]
                exponents[name] = bilinear_alignment(q0, k0, q, k, site.width_dim)
        return exponents

    def _present_inputs(self) -> Inputs:
        if not self._from_training:
            return self._run(self.probe)
        if self._seen_in_training is None:
            raise RuntimeError(
                "use_training_activations: training has not run the model on the probe since the "
                "last measurement; train on it, or set use_training_activations=False"
            )
        seen, self._seen_in_training = self._seen_in_training, None
        return seen

    def _run(self, x: Any) -> Inputs:
        with evaluating(self._model), torch.no_grad(), self._capture.watching() as seen:
            self._forward(x)
        return self._complete(seen)

    def _complete(self, seen: Inputs) -> Inputs:
        """Check that every site was reached, and gather the columns that ranks split."""
        missed = [name for name in self._sites if name not in seen]
        if missed:
            raise ValueError(f"a forward pass on the probe does not reach {', '.join(missed)}")
        # Not site.weight: during a forward pass FSDP replaces it.
        for name, weight in self._weights.items():
            (z,) = seen[name]
            seen[name] = (whole_columns(z, weight),)
        return seen

    def _watch_training(self) -> None:
        """Record the sites' inputs whenever training runs the model on the probe."""
        if not self._from_training or self._watching:
            return
        self._watching = True
        opened: list[Any] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.is_grad_enabled() and _same((args, kwargs), self.probe):
                watching = self._capture.watching()
                opened.append((watching, watching.__enter__()))

        def after(*_: Any) -> None:
            if opened:
                watching, seen = opened.pop()
                watching.__exit__(None, None, None)
                self._seen_in_training = self._complete(seen)

        self._model.register_forward_pre_hook(before, with_kwargs=True)
        # Also after a forward pass that raised, or its hooks would stay.
        self._model.register_forward_hook(after, always_call=True)

    def state_dict(self) -> dict[str, Any]:
        """The probe, z0, the stored W0, and training's activations that are not measured yet."""
        assert self.z0 is not None
        assert self.w0 is not None
        seen = self._seen_in_training
        return {
            "probe": self.probe,
            "z0": _pack(self.z0),
            "w0": self.w0.kept(),
            "seen": None if seen is None else _pack(seen),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; tensors are moved to the device of the weights.

        Raises:
            ValueError: W0 is drawn again when needed, and the earlier run's W0 was not drawn.
        """
        device = next(iter(self._model.parameters()), torch.empty(0)).device
        state = tree_map_only(torch.Tensor, lambda t: t.to(device), dict(state))
        self._given, self.probe = None, state["probe"]
        self.z0 = _unpack(state["z0"])
        self._seen_in_training = None if state["seen"] is None else _unpack(state["seen"])
        self.w0 = self._make_initial_weights()
        self.w0.restore(state["w0"])
        self._watch_training()


def _pack(inputs: Inputs) -> dict[str, Any]:
    """`Inputs` in which a tensor that several sites share is stored once."""
    tensors: list[torch.Tensor] = []
    index: dict[str, list[int]] = {}
    for name, group in inputs.items():
        index[name] = []
        for z in group:
            known = [i for i, tensor in enumerate(tensors) if tensor is z]
            index[name].append(known[0] if known else len(tensors))
            if not known:
                tensors.append(z)
    return {"tensors": tensors, "index": index}


def _unpack(packed: Mapping[str, Any]) -> Inputs:
    return {
        name: tuple(packed["tensors"][i] for i in indices)
        for name, indices in packed["index"].items()
    }


def _same(x: Any, probe: Any) -> bool:
    """Whether two nested structures contain equal tensors, in order."""
    mine, theirs = (
        [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        for value in (x, probe)
    )
    return len(mine) == len(theirs) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(mine, theirs, strict=True)
    )
