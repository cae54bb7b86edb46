"""A probe followed through training: its initial activations, the initial weights, and what is
measured against them."""

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
    """Measures the alignment of the sites that contract something, on one fixed probe.

    Args:
        model: the model that holds the sites.
        sites: those to measure, by name; without embeddings.
        weights: their weights, where they have one.
        initial_weights: makes the `InitialWeights` of the present weights; called by `capture`.
        forward: runs the model on the probe.
        sample_size: tokens of the probe that are looked at.
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
        """Take ``x`` as the probe, and the present activations and weights as the initial ones.

        Raises:
            ValueError: W0 is to be drawn again, and the weights are no longer as they were drawn.
        """
        w0 = self._make_initial_weights()
        w0.check_redrawn()
        self.w0 = w0
        # A copy: the caller may use the tensor again for other values.
        self._given, self.probe = x, tree_map_only(torch.Tensor, torch.clone, x)
        self.z0, self._seen_in_training = self._run(self.probe), None
        self._watch_training()

    def check_probe(self, x: Any) -> None:
        """Raise ValueError if ``x`` is not the probe; None stands for it."""
        if x is not None and x is not self._given and not _same(x, self.probe):
            raise ValueError(
                "x is not the probe that capture_initial saw: alignment compares the same tokens "
                "before and after training. Pass that x, or None"
            )

    def exponents(self) -> dict[str, Measured]:
        """The measured exponents of every site.

        Raises:
            RuntimeError: before `capture`; or when activations come from training and it has not
                run the model on the probe since the last call.
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
        found = dict(zip(weighted, measure(states), strict=True)) if states else {}
        for name, site in self._sites.items():
            if name not in self._weights:
                (q0, k0), (q, k) = z0[name], z[name]
                found[name] = bilinear_alignment(q0, k0, q, k, site.width_dim)
        return found

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
        """The inputs of every site, with all of their columns on every rank."""
        missed = [name for name in self._sites if name not in seen]
        if missed:
            raise ValueError(f"a forward pass on the probe does not reach {', '.join(missed)}")
        # By the weights given here: in a forward pass FSDP has others in their place.
        for name, weight in self._weights.items():
            seen[name] = (whole_columns(*seen[name], weight),)
        return seen

    def _watch_training(self) -> None:
        """Catch the sites' inputs whenever training runs the model on the probe."""
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
        """Probe, z0, the kept W0, and what was seen in training but not measured yet."""
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
        """Continue from `state_dict`; tensors go to the device of the weights.

        Raises:
            ValueError: W0 is to be drawn again, but the earlier run's was not drawn.
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
    """`Inputs` with each tensor that sites share once."""
    tensors: list[torch.Tensor] = []
    index: dict[str, list[int]] = {}
    for name, group in inputs.items():
        index[name] = []
        for z in group:
            found = [i for i, known in enumerate(tensors) if known is z]
            index[name].append(found[0] if found else len(tensors))
            if not found:
                tensors.append(z)
    return {"tensors": tensors, "index": index}


def _unpack(packed: Mapping[str, Any]) -> Inputs:
    return {
        name: tuple(packed["tensors"][i] for i in indices)
        for name, indices in packed["index"].items()
    }


def _same(x: Any, probe: Any) -> bool:
    """Whether two nests of arguments hold equal tensors, in order."""
    mine, theirs = (
        [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        for value in (x, probe)
    )
    return len(mine) == len(theirs) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(mine, theirs, strict=True)
    )
