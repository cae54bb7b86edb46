"""The numbers as Markdown tables, for the report and the tutorial alike."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from scripts.study.derived import QUANTITIES, RATIOS, TOTAL
from scripts.study.figures import NAMES
from scripts.study.mlp import METHODS
from scripts.study.numbers import KINDS
from scripts.study.plan import OPTIMIZERS

Numbers = dict[str, Any]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def signed(value: float, digits: int = 2) -> str:
    # Rounded first and + 0.0, so that there is no -0.00.
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def code(quantity: str) -> str:
    return f"`{QUANTITIES[quantity]}`"


def slopes(numbers: Numbers) -> str:
    """Measured and derived slopes at the middle depth."""
    rows = []
    for method in METHODS:
        for optimizer in OPTIMIZERS:
            for kind in KINDS:
                found = numbers["single"]["slopes"][method][optimizer][kind]
                cells = [
                    f"{signed(found[q]['slope'])} ± {found[q]['half']:.2f} "
                    f"({signed(found[q]['derived'], 1)})"
                    for q in RATIOS
                ]
                rows.append([NAMES[method], optimizer, kind, *cells])
    return markdown(["", "", "layer", *map(code, RATIOS)], rows)


def totals(numbers: Numbers) -> str:
    """The same of the total change, which is the sum of what is added and what is inherited."""
    rows = []
    for method in METHODS:
        for optimizer in OPTIMIZERS:
            found = numbers["single"]["slopes"][method][optimizer]
            cells = [
                f"{signed(found[k][TOTAL]['slope'])} ({signed(found[k][TOTAL]['derived'], 1)})"
                for k in KINDS
            ]
            rows.append([NAMES[method], optimizer, *cells])
    return markdown(["total change", "", *KINDS], rows)


def chain(numbers: Numbers) -> str:
    """From ||z|| to the change of the output, standard, Adam."""
    found = numbers["single"]["chain"]
    rows = [
        [code(q), f"{signed(f['slope'], 3)} ± {f['half']:.3f}", signed(f["derived"], 1)]
        for q, f in found.items()
    ]
    return markdown(["quantity", "measured slope", "derived"], rows)


def close(numbers: Numbers) -> str:
    """How many slopes are within 0.1, by depth."""
    rows = [
        [
            str(d["depth"]),
            str(d["all"]),
            str(d["close"]),
            str(d["near_finite"]),
            *(f"{d[q]:.2f}" for q in RATIOS),
        ]
        for d in numbers["single"]["close"]["by_depth"]
    ]
    head = ["depth", "slopes", "within 0.1 of derived", "within 0.1 with finite sizes"]
    return markdown([*head, *(f"largest gap, {code(q)}" for q in RATIOS)], rows)


def close_by_quantity(numbers: Numbers) -> str:
    """The same by optimizer and quantity."""
    rows = [
        [d["optimizer"], code(d["quantity"]), str(d["all"]), str(d["close"]), str(d["near_finite"])]
        for d in numbers["single"]["close"]["by_quantity"]
    ]
    head = ["", "quantity", "slopes", "within 0.1 of derived", "within 0.1 with finite sizes"]
    return markdown(head, rows)


def cv_width(numbers: Numbers) -> str:
    """The largest coefficient of variation over widths among the hidden layers."""
    rows = [
        [NAMES[d["method"]], d["optimizer"], str(d["depth"]), *(f"{d[q]:.3f}" for q in _FIVE)]
        for d in numbers["single"]["cv_width"]
    ]
    return markdown(["", "", "depth", *map(code, _FIVE)], rows)


def cv_depth(numbers: Numbers) -> str:
    """Coefficients of variation over depths at the largest width."""
    rows = [
        [NAMES[d["method"]], d["optimizer"], d["kind"], *(f"{d[q]:.2f}" for q in _FIVE)]
        for d in numbers["single"]["cv_depth"]
    ]
    return markdown(["", "", "layer", *map(code, _FIVE)], rows)


def kept(numbers: Numbers) -> str:
    """What Adam's default eps leaves, by depth and width, in the layer where it takes most."""
    found = numbers["single"]["kept"]
    widths = sorted({d["width"] for d in found})
    rows = []
    for method, depth in dict.fromkeys((d["method"], d["depth"]) for d in found):
        cells = {
            d["width"]: d["kept"] for d in found if (d["method"], d["depth"]) == (method, depth)
        }
        rows.append([NAMES[method], str(depth), *(f"{cells[w]:.3f}" for w in widths)])
    return markdown(["", "depth", *(f"width {w}" for w in widths)], rows)


def training(numbers: Numbers) -> str:
    """The training part: one row a depth and width."""
    names = ("activation", "gradient", "spread", "update", "late_loss", "accuracy")
    head = ["rms before the readout", "hidden gradient norm", "its max / min over depth"]
    head += ["hidden relative update", "late loss", "accuracy"]
    rows = [
        [
            str(c["depth"]),
            str(c["width"]),
            *("" if c[n] is None else f"{c[n]:.3g}" for n in names),
        ]
        for c in numbers["training"]["cells"]
    ]
    return markdown(["depth", "width", *head], rows)


def sweep_small(numbers: Numbers) -> str:
    """Best learning rates by width at the small batch, and the power by which they move."""
    return _sweep(numbers["sweep"]["small"])


def sweep_large(numbers: Numbers) -> str:
    """The same at the large batch."""
    return _sweep(numbers["sweep"]["large"])


def _sweep(found: Numbers) -> str:
    widths = [b["width"] for b in found["standard"]["best"]]
    rows = []
    for method in METHODS:
        mine = found[method]
        best = [
            f"2^{b['best']} ({b['between']:.1f})" + (", edge" if b["at_edge"] else "")
            for b in mine["best"]
        ]
        spread = f"seeds: {signed(mine['power'])} ± {mine['half']:.2f}"
        power = f"{signed(mine['power_of_mean'])} ({spread})"
        losses = f"{mine['carried_loss']:.3f}, best {mine['best_loss']:.3f}"
        rows.append(
            [NAMES[method], *best, str(mine["moved"]), power, losses, f"{mine['excess']:.3f}"]
        )
    head = ["", *(f"width {w}" for w in widths), "grid steps", "power of n"]
    head += [
        f"loss at {widths[-1]} with the best lr of {widths[0]}",
        "cost of one lr for all widths",
    ]
    return markdown(head, rows)


_FIVE = (*RATIOS, TOTAL)

TABLES: dict[str, Callable[[Numbers], str]] = {
    "slopes": slopes,
    "totals": totals,
    "chain": chain,
    "close": close,
    "close_by_quantity": close_by_quantity,
    "cv_width": cv_width,
    "cv_depth": cv_depth,
    "kept": kept,
    "training": training,
    "sweep_small": sweep_small,
    "sweep_large": sweep_large,
}
