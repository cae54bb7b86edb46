"""The exponents of the single pass in closed form: each quantity is proportional to n^exponent.

For one input, at initialisation. n is the width. Let p = 1 if the fan-out is n and else 0, and
q = 1 if the fan-in is n and else 0. Inputs and outputs of layers have entries of size 1, except for
the readout's outputs: n^(1/2 - a - b). With y = n^-a W z and the loss the sum of the outputs, the
gradient delta at y has entries of size

    n^-g,   g = 0 at the readout L,   g = a_L + b_L below it.

Below the readout, the gradient has passed n^-a_L W_L once, whose entries have that size; hidden
layers have a + b = 1/2 and do not change it. The gradient of W is n^-a delta z^T, so every norm is
a product of the norms of two vectors. A vector with n entries of size n^-s has the norm
n^(1/2 - s). The exponents:

    ||z||       q/2
    ||W||_F     (p + q)/2 - b            ||W||_2    1/2 - b
    ||delta||   p/2 - g                  ||grad||   ||delta|| + ||z|| - a
    ||dW||      ||grad|| - c  (SGD)      (p + q)/2 - c  (Adam: entries of size n^-c)

dW has rank one, so its spectral and Frobenius norms are equal, and it is aligned with z: the norm
of dW z is ||dW|| ||z||, with Adam times a constant (its dW is aligned with sign(z)).
"""

from dataclasses import dataclass

from maxp.module import LayerType
from scripts.study.plan import Optimizer

# The quantities whose slopes are fitted, with their names in tables and figures.
RATIOS: dict[str, str] = {
    "gradient": "‖grad W‖ / ‖W‖",
    "frobenius": "‖dW‖_F / ‖W‖_F",
    "spectral": "‖dW‖_2 / ‖W‖_2",
    "output": "‖dW z‖ / ‖W z‖",
}
TOTAL = "total"
NORMS: dict[str, str] = {
    "z": "‖z‖",
    "delta": "‖delta‖",
    "grad": "‖grad W‖",
    "weight_f": "‖W‖_F",
    "weight_2": "‖W‖_2",
}
QUANTITIES: dict[str, str] = {**RATIOS, TOTAL: "‖dy‖ / ‖y‖", **NORMS}


@dataclass(frozen=True)
class Layer:
    """A layer's type and exponents."""

    kind: LayerType
    a: float
    b: float
    c: float


def derive(layer: Layer, readout: Layer, optimizer: Optimizer) -> dict[str, float]:
    """Exponents of every quantity but the total change, with the keys of `RATIOS` and `NORMS`.

    Args:
        layer: the layer of the quantities.
        readout: the model's, whose (a, b) sets the size of the gradients below it.
    """
    p, q = float(layer.kind != "readout"), float(layer.kind != "embedding")
    g = 0.0 if layer.kind == "readout" else readout.a + readout.b
    z, weight_f, weight_2 = q / 2, (p + q) / 2 - layer.b, 0.5 - layer.b
    delta = p / 2 - g
    grad = delta + z - layer.a
    update = (p + q) / 2 - layer.c if optimizer == "adam" else grad - layer.c
    product = (p + q) / 2 - layer.b  # ||W z||: a random sum over the fan-in
    return {
        "gradient": grad - weight_f,
        "frobenius": update - weight_f,
        "spectral": update - weight_2,
        "output": update + z - product,
        "z": z,
        "delta": delta,
        "grad": grad,
        "weight_f": weight_f,
        "weight_2": weight_2,
    }


def derive_chain(layers: list[Layer], optimizer: Optimizer) -> list[dict[str, float]]:
    """Exponents of every quantity of all layers of a chain, the total change included.

    Below the readout, a layer's total change has the largest exponent of the layer's own change and
    of those that it inherits, because a hidden layer keeps the size of its input's change. The
    readout inherits n^(1/2) more: at the first step dz is along W_L, so it adds up coherently.

    Args:
        layers: from the embedding to the readout.
    """
    derived = []
    inherited = float("-inf")
    for layer in layers:
        exponents = derive(layer, layers[-1], optimizer)
        gain = 0.5 if layer.kind == "readout" else 0.0
        inherited = max(exponents["output"], inherited + gain)
        derived.append({**exponents, TOTAL: inherited})
    return derived
