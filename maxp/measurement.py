"""Measures alignment on a batch, against its initial activations and the initial weights."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from maxp.alignment import Measured, SiteState, bilinear_alignment, measure
from maxp.capture import Capture, Inputs, calls_of
from maxp.layout import matrix_rows, weight_matrix
from maxp.module import Site
from maxp.passes import passing
from maxp.shards import local, of_first_rank, reshard, whole_columns
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
        # The arguments (args, kwargs) of training's last forward pass, and the sites' inputs in it.
        self._seen_in_training: tuple[Any, Inputs] | None = None
        self._watching = False
        self._opened: list[Any] = []
        self._given: Any = None
        self.probe: Any = None
        self.z0: Inputs | None = None
        self.w0: InitialWeights | None = None

    def capture(self, x: Any, *, any_batch: bool = True) -> None:
        """Make the present weights the initial ones; and ``x``, unless it is None, the probe.

        Args:
            any_batch: store what measuring on other batches than the probe needs.

        Raises:
            ValueError: W0 is drawn again when needed, and a weight has changed since it was drawn;
                or no alignment can be measured on ``x``.
        """
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
        """The measured exponents of every site.

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
        self._check_same_tokens(z0, z)
        calls = [(n, call) for n in self._sites for call in calls_of(n, z0)]
        weighted = [(n, call) for n, call in calls if n in self._weights]
        states = []
        for name, call in weighted:
            (before,), (now,) = z0[call], z[call]
            site, weight = self._sites[name], self._weights[name]
            w0 = matrix_rows(site, self.w0.rows(name), local(weight).shape[0])
            matrix = weight_matrix(site, weight)
            # The entries of a kernel are contracted as well: alignment stays in [0, 1].
            n = site.width_dim if weight.ndim == 2 else matrix.shape[1]
            states.append(SiteState(before, now, matrix, w0, n))
        of_calls: dict[str, list[Measured]] = {name: [] for name in self._sites}
        for (name, _), exponents in zip(weighted, measure(states) if states else [], strict=True):
            of_calls[name].append(exponents)
        for name, call in calls:
            if name not in self._weights:
                (q0, k0), (q, k) = z0[call], z[call]
                width = self._sites[name].width_dim
                of_calls[name].append(bilinear_alignment(q0, k0, q, k, width))
        return {name: _most_cautious(exponents) for name, exponents in of_calls.items()}

    def _inputs(self, x: Any) -> tuple[Inputs, Inputs]:
        """The sites' inputs on ``x``, with the initial and with the current weights."""
        if self.z0 is not None and (x is None or x is self._given or _same(x, self.probe)):
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
        if self.z0 is not None and _same(batch, self.probe):
            return self.z0, z
        args, kwargs = batch
        return self._run_initial(lambda: self._model(*args, **kwargs)), z

    def _check_same_tokens(self, z0: Inputs, z: Inputs) -> None:
        for name in z0:
            if name not in z:
                raise ValueError(f"{name}: there is no such call with the current weights")
            for before, now in zip(z0[name], z[name], strict=True):
                if before.shape != now.shape:
                    raise ValueError(
                        f"{name}: its input has {before.shape[-2]} sampled tokens with the initial "
                        f"weights and {now.shape[-2]} with the current ones, so they cannot be "
                        "compared; give this site an alignment_overrides"
                    )

    def _run_initial(self, forward: Callable[[], Any]) -> Inputs:
        assert self.w0 is not None
        reshard(self._model)  # a gathered weight is a copy, which would keep the current values
        with self.w0.in_model():
            return self._watched(forward)

    def _run(self, x: Any) -> Inputs:
        return self._watched(lambda: self._forward(x))

    def _watched(self, forward: Callable[[], Any]) -> Inputs:
        with passing(self._model), self._capture.watching() as seen:
            forward()
        return self._complete(seen)

    def _complete(self, seen: Inputs) -> Inputs:
        """Check that every site was reached, and gather the columns that ranks split."""
        missed = [name for name in self._sites if name not in seen]
        if missed:
            raise ValueError(f"a forward pass does not reach {', '.join(missed)}")
        # Not site.weight: during a forward pass FSDP replaces it.
        for name, weight in self._weights.items():
            for call in calls_of(name, seen):
                (z,) = seen[call]
                seen[call] = (whole_columns(z, weight),)
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
        if seen.keys() >= self._sites.keys():
            self._seen_in_training = batch, self._complete(seen)

    def state_dict(self) -> dict[str, Any]:
        """The probe, z0, the stored initial values, and what `exponents` has not used of training.

        The last is in bytes, so that the keys do not depend on it.
        """
        assert self.w0 is not None
        seen = io.BytesIO()
        if self._seen_in_training is not None:
            batch, z = self._seen_in_training
            torch.save((batch, _pack(z)), seen)
        others = self.w0.others()
        return {
            "probe": self.probe,
            "z0": None if self.z0 is None else _pack(self.z0),
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
        self.z0 = None if state["z0"] is None else _unpack(state["z0"])
        seen = state["seen"]
        if isinstance(seen, bytes):
            batch, packed = torch.load(io.BytesIO(seen), map_location=device, weights_only=True)
            self._seen_in_training = batch, _unpack(packed)
        else:  # of an earlier version, which saw training only on the probe
            self._seen_in_training = None if seen is None else (self.probe, _unpack(seen))
        reshard(self._model)
        self.w0 = self._make_initial_weights()
        self.w0.restore(state["w0"], state.get("others"))
        self._watch_training()


def _most_cautious(calls: list[Measured]) -> Measured:
    """The largest exponent of a site's calls, for each term."""
    first, second, third = (
        max((x for x in term if x is not None), default=None) for term in zip(*calls, strict=True)
    )
    return first, second, third


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
