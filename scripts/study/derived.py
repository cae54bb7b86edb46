"""The exponents of the single pass, in closed form: each quantity is proportional to width^e.

For one input, at init. Let p be 1 where the fan-out grows with the width n and else 0, and q the
same of the fan-in. Inputs and outputs have entries of size 1, but for a readout's, n^(1/2 - a - b).
With y = n^-a W z and the loss the sum of the outputs, the gradient at y has entries of size

    n^-g,   g = 0 at the readout L,   g = a_L + b_L below it:

it has passed n^-a_L W_L once, whose entries have that size, and hidden layers, a + b = 1/2, keep
it. The gradient of W is n^-a delta z^T, so every norm is a product of two vectors' norms. A vector
with n entries of size n^-s has the norm n^(1/2 - s):

    ||z||       q/2
    ||W||_F     (p + q)/2 - b            ||W||_2    1/2 - b
    ||delta||   p/2 - g                  ||grad||   ||delta|| + ||z|| - a
    ||dW||      ||grad|| - c  (SGD)      (p + q)/2 - c  (Adam: entries of size n^-c)

dW is of rank one, so its spectral and Frobenius norms are equal, and it is aligned with z: the
change dW z of the output has the norm ||dW|| ||z||, times a constant for Adam (sign(z) for z).
"""

from dataclasses import dataclass

from maxp.module import LayerType
from scripts.study.plan import Optimizer

# What is fitted, with the words for tables and axes.
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
    """Exponents of every quantity but the total change, by the names of `RATIOS` and `NORMS`.

    Args:
        layer: the one that is looked at.
        readout: the model's, whose (a, b) sets the size of the gradients below it.
    """
    p, q = float(layer.kind != "readout"), float(layer.kind != "embedding")
    g = 0.0 if layer.kind == "readout" else readout.a + readout.b
    z, weight_f, weight_2 = q / 2, (p + q) / 2 - layer.b, 0.5 - layer.b
    delta = p / 2 - g
    grad = delta + z - layer.a
    update = (p + q) / 2 - layer.c if optimizer == "adam" else grad - layer.c
    product = p / 2 + q / 2 - layer.b  # ||W z||: a random sum over the fan-in
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
    """Exponents of every quantity, the total change too, of a chain that ends with its readout.

    Below the readout a total change is the largest of the layer's own and those it inherits, since
    a hidden layer keeps the size of what it reads. The readout adds up the change of its input
    coherently, dz being along W_L at the first step: it inherits n^(1/2) more.
    """
    found = []
    inherited = float("-inf")
    for layer in layers:
        exponents = derive(layer, layers[-1], optimizer)
        gain = 0.5 if layer.kind == "readout" else 0.0
        inherited = max(exponents["output"], inherited + gain)
        found.append({**exponents, TOTAL: inherited})
    return found
