"""The numbers as Markdown tables, for the report and the tutorial."""

from collections.abc import Callable, Iterable
from typing import Any

from scripts.study.depths import ARMS
from scripts.study.derived import QUANTITIES, RATIOS, TOTAL
from scripts.study.mlp import METHODS
from scripts.study.plan import OPTIMIZERS

Numbers = dict[str, Any]
KINDS = ("embedding", "hidden", "readout")
_CODE = {quantity: f"`{name}`" for quantity, name in QUANTITIES.items()}


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Rows of column -> cell, all with the same columns. A column of spaces has no heading."""
    rows = list(rows)
    lines = [[column.strip() for column in rows[0]], *([str(v) for v in r.values()] for r in rows)]
    head, *body = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def signed(value: float, digits: int = 2) -> str:
    # Rounded first and + 0.0, so that there is no -0.00.
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _fits(numbers: Numbers) -> list[tuple[str, str, Numbers]]:
    """(method, optimizer, layer type -> quantity -> fitted slope)."""
    fits = numbers["single"]["slopes"]
    return [(name, o, fits[method][o]) for method, name in METHODS.items() for o in OPTIMIZERS]


def _derived(fit: dict[str, float]) -> str:
    return f"({signed(fit['derived'], 1)})"


def slopes(numbers: Numbers) -> str:
    """Measured and derived slopes at the middle depth."""
    return markdown(
        {
            "": method,
            " ": optimizer,
            "layer": kind,
            **{
                _CODE[q]: f"{signed(fit[q]['slope'])} ± {fit[q]['half']:.2f} {_derived(fit[q])}"
                for q in RATIOS
            },
        }
        for method, optimizer, fits in _fits(numbers)
        for kind, fit in ((kind, fits[kind]) for kind in KINDS)
    )


def totals(numbers: Numbers) -> str:
    """The same for the total change of a layer's output."""
    rows = []
    for method, optimizer, fits in _fits(numbers):
        cells = {k: f"{signed(fits[k][TOTAL]['slope'])} {_derived(fits[k][TOTAL])}" for k in KINDS}
        rows.append({"total change": method, " ": optimizer, **cells})
    return markdown(rows)


def _counts(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "slopes": row["all"],
        "within 0.1 of derived": row["close"],
        "within 0.1 with finite sizes": row["near_finite"],
        "within 0.1, mean squares": row["near_square"],
    }


def close(numbers: Numbers) -> str:
    """How many slopes are within 0.1 of the derived exponents, by depth."""
    return markdown(
        {
            "depth": row["depth"],
            **_counts(row),
            **{f"largest gap, {_CODE[q]}": f"{row[q]:.2f}" for q in RATIOS},
        }
        for row in numbers["single"]["close"]["by_depth"]
    )


def close_by_quantity(numbers: Numbers) -> str:
    """The same by optimizer and quantity."""
    return markdown(
        {"": row["optimizer"], "quantity": _CODE[row["quantity"]], **_counts(row)}
        for row in numbers["single"]["close"]["by_quantity"]
    )


def _variation(rows: list[dict[str, Any]], column: str, key: str, digits: int) -> str:
    """Coefficients of variation of the ratios and the total change."""
    return markdown(
        {
            "": METHODS[row["method"]],
            " ": row["optimizer"],
            column: row[key],
            **{_CODE[q]: f"{row[q]:.{digits}f}" for q in (*RATIOS, TOTAL)},
        }
        for row in rows
    )


def kept(numbers: Numbers) -> str:
    """The part of an update that Adam's default eps leaves, in the layer where it is least."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for cell in numbers["single"]["kept"]:
        method, depth = cell["method"], cell["depth"]
        row = rows.setdefault((method, depth), {"": METHODS[method], "depth": depth})
        row[f"width {cell['width']}"] = f"{cell['kept']:.3f}"
    return markdown(rows.values())


def training(numbers: Numbers) -> str:
    """The training part: one row per depth and width."""
    columns = {
        "rms before the readout": "activation",
        "hidden gradient norm": "gradient",
        "its max / min over depth": "spread",
        "hidden relative update": "update",
        "late loss": "late_loss",
        "accuracy": "accuracy",
    }
    return markdown(
        {
            "depth": cell["depth"],
            "width": cell["width"],
            **{
                head: "" if cell[name] is None else f"{cell[name]:.3g}"
                for head, name in columns.items()
            },
        }
        for cell in numbers["training"]["cells"]
    )


def _lr(best: dict[str, Any]) -> str:
    return f"2^{best['best']} ({best['between']:.1f}){', edge' if best['at_edge'] else ''}"


def _carried(mine: Numbers, over: str, size: str, n: str) -> dict[str, str]:
    """Best learning rates by size, the power with which they move, and the cost of the base's."""
    first, *_, last = (best[over] for best in mine["best"])
    seeds = f"seeds: {signed(mine['power'])} ± {mine['half']:.2f}"
    losses = f"{mine['carried_loss']:.3f}, best {mine['best_loss']:.3f}"
    return {
        **{f"{size} {best[over]}": _lr(best) for best in mine["best"]},
        f"power of {n}": f"{signed(mine['power_of_mean'])} ({seeds})",
        f"loss at {last} with the best lr of {first}": losses,
        "regret": f"{signed(mine['regret'], 3)} ± {mine['regret_half']:.3f}",
    }


def _sweep(numbers: Numbers, batch: str) -> str:
    """The sweep over widths of one batch size."""
    fits = numbers["sweep"][batch]
    return markdown(
        {"": name, **_carried(fits[method], "width", "width", "n")}
        for method, name in METHODS.items()
    )


def depths(numbers: Numbers) -> str:
    """The sweep over depths."""
    return markdown(
        {
            "": name,
            **_carried(fit := numbers["depths"][arm], "blocks", "L =", "L"),
            "derived": signed(fit["derived"], 1),
        }
        for arm, (name, _) in ARMS.items()
    )


def tuning(numbers: Numbers) -> str:
    """Loss at the best lr for each pair of factors, at both batch sizes."""
    rows: dict[float, dict[str, Any]] = {}
    for cell in numbers["tuning"]["cells"]:
        factor, readout = cell["embedding_factor"], f"readout x {cell['readout_factor']:g}"
        row = rows.setdefault(factor, {"": f"embedding x {factor:g}"})
        row[readout] = f"{row[readout]} / " if readout in row else ""
        row[readout] += f"{cell['loss']:.3f} (2^{cell['log2_lr']})"
    return markdown(rows.values())


def predicted(numbers: Numbers) -> str:
    """The power of the best lr that measured alignment predicts, beside the measured one."""
    rows = []
    for batch in ("small", "large"):
        for method, name in METHODS.items():
            fit = numbers["sweep"][batch][method]
            said = fit["predicted"]
            rows.append(
                {
                    "batch": numbers["sweep"]["batches"][batch],
                    "": name,
                    **{f"alignment, {kind}": f"{said[kind]:.2f}" for kind in KINDS[1:]},
                    **{f"growth, {kind}": f"{said['growth'][kind]:.2f}" for kind in KINDS[1:]},
                    **{f"{kind} alone": signed(said["layers"][kind]) for kind in KINDS},
                    "hidden alone, by growth": signed(said["by_growth"]),
                    "predicted": signed(said["power"]),
                    "measured": f"{signed(fit['power'])} ± {fit['half']:.2f}",
                }
            )
    return markdown(rows)


def _factors(numbers: Numbers, quantities: tuple[str, ...]) -> str:
    """By depth, columns of ``heatmap.csv``: see `heatmap.numbers`, ``by_depth``."""
    page = numbers["heatmap"]
    heads = {
        f"{quantity}, {METHODS[method]}": f"{method}_{quantity}"
        for quantity in quantities
        for method in ("standard", "mup")
    }

    def cells(fits: dict[str, dict[str, float]], digits: int) -> dict[str, str]:
        return {
            head: f"{fits[name]['factor']:.3g} ({signed(fits[name]['power'], digits)})"
            if name in fits
            else ""  # a model of two layers has no hidden layer
            for head, name in heads.items()
        }

    growth = page["wide"] / page["narrow"]
    derived = {n: {"factor": growth**power, "power": power} for n, power in page["derived"].items()}
    measured = [row for row in page["by_depth"] if any(name in row for name in heads.values())]
    rows = [{"depth": row["depth"], **cells(row, 2)} for row in measured]
    return markdown([{"depth": "derived", **cells(derived, 1)}, *rows])


def multipliers(numbers: Numbers) -> str:
    """The standard readout's gradient ratio with a multiplier n^-a on the output."""
    names = {0.0: "none", 0.5: "1/√n", 1.0: "1/n"}
    return markdown(
        {
            "multiplier of the output": names[row["a"]],
            "power of n": signed(row["power"]),
            "derived": signed(0.5 - row["a"], 1),
            "coefficient of variation over widths": f"{row['cv']:.2f}",
        }
        for row in numbers["heatmap"]["multipliers"]["rows"]
    )


def activations(numbers: Numbers) -> str:
    """The scale before the readout at the first and the last step, and the accuracy."""
    rows: dict[int, dict[str, Any]] = {}
    for cell in numbers["heatmap"]["trained"]:
        row = rows.setdefault(cell["depth"], {"depth": cell["depth"]})
        scales = f"{cell['start']:.2g} → {cell['end']:.2g}"
        row[f"width {cell['width']}"] = f"{scales} ({cell['accuracy']:.0%})"
    return markdown(rows.values())


TABLES: dict[str, Callable[[Numbers], str]] = {
    "slopes": slopes,
    "totals": totals,
    "close": close,
    "close_by_quantity": close_by_quantity,
    "cv_width": lambda numbers: _variation(numbers["single"]["cv_width"], "depth", "depth", 3),
    "cv_depth": lambda numbers: _variation(numbers["single"]["cv_depth"], "layer", "kind", 2),
    "kept": kept,
    "training": training,
    "sweep_small": lambda numbers: _sweep(numbers, "small"),
    "sweep_large": lambda numbers: _sweep(numbers, "large"),
    "tuning": tuning,
    "predicted": predicted,
    "depths": depths,
    "heat_ratios": lambda numbers: _factors(numbers, ("readout", "hidden")),
    "heat_changes": lambda numbers: _factors(numbers, ("change",)),
    "multipliers": multipliers,
    "activations": activations,
}
