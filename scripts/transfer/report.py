"""The tables of docs/results.md."""

import math

import numpy as np
import pandas as pd

from scripts.marked import table
from scripts.transfer.added import (
    LARGE_BATCH,
    LAW,
    MUON_METHODS,
    MUON_WIDTHS,
    STEP_TOKENS,
    horizon_curves,
    method_arm,
    muon_curves,
    seeds_of,
)
from scripts.transfer.objectives import OBJECTIVES, C
from scripts.transfer.objectives import PART as OBJECTIVE
from scripts.transfer.plan import (
    ABLATED,
    ABLATIONS,
    ARMS,
    BASE,
    DEPTH_ARMS,
    DEPTHS,
    FACTORS,
    WIDEST,
    WIDTHS,
    Choice,
)
from scripts.transfer.recipes import PART, RECIPES, WHERE, arm_of
from scripts.transfer.results import (
    Data,
    Interval,
    best_lr,
    complete,
    difference,
    needed,
    optima,
    power,
    predicted,
    regret,
)
from train.results.names import lr_text


def texts(data: Data, solved: dict[str, C]) -> dict[str, str]:
    """The text of each marked place of the page; ``solved`` is from `read_solutions`."""
    return {
        "base": base(data),
        "factors": factors(data),
        "choice": _choice(data.choice),
        "width": ladder(data, "width", WIDTHS),
        "compared": compared(data),
        "power": powers(data),
        "depth": ladder(data, "depth", DEPTHS),
        "ablations": ablations(data),
        "objectives": objectives(data, solved),
        "published": published(data),
        "recipes": recipes(data),
        "horizon": horizon(data),
        "horizon power": _power_text(horizon_curves(data)),
        "muon": muon(data),
        "muon power": _power_text(muon_curves(data)),
        "muon tokens-x4": muon(data, LARGE_BATCH),
        "muon tokens-x4 power": _power_text(muon_curves(data, LARGE_BATCH)),
        "muon methods": muon_methods(data),
        "runs": str(len(data.frame)),
    }


def base(data: Data) -> str:
    """Loss over lr at the base, without factors."""
    rows = data.frame.query("part == 'base'")
    rows = rows[
        [
            set(Choice(lr).flags()) <= set(f.split())
            for lr, f in zip(rows["lr"], rows["flags"], strict=True)
        ]
    ]
    losses = rows.pivot(index="seed", columns="lr", values="validation")
    cells = [
        [lr_text(float(str(lr))), _spread(Interval.of(list(losses[lr])))] for lr in losses.columns
    ]
    return table(["lr", "loss, mean and 95% interval"], cells)


def factors(data: Data) -> str:
    """Loss over the factors on embedding and head, at the lr that is best without factors."""
    rows = data.frame.query("part == 'base'")
    alone = [lr for lr in sorted(rows["lr"].unique()) if _factor_losses(data, Choice(lr)).n == 3]
    best = min(alone, key=lambda lr: _factor_losses(data, Choice(lr)).mean)
    heads = ["embedding", *(f"head x {_factor(h)}" for h in FACTORS)]
    cells = [
        [f"x {_factor(e)}", *(_spread(_factor_losses(data, Choice(best, e, h))) for h in FACTORS)]
        for e in FACTORS
    ]
    return table(heads, cells)


def _factor_losses(data: Data, at: Choice) -> Interval:
    rows = data.frame.query("part == 'base' and lr == @at.lr")
    mine = rows[[set(at.flags()) <= set(flags.split()) for flags in rows["flags"]]]
    return Interval.of(list(mine["validation"]))


def _choice(chosen: Choice) -> str:
    return (
        f"lr {lr_text(chosen.lr)}, embedding x {_factor(chosen.embedding)}, "
        f"head x {_factor(chosen.readout)}"
    )


def ladder(data: Data, part: str, sizes: dict[str, int]) -> str:
    """A row per size and arm: best lr and loss, loss at the carried lr, regret."""
    arms = ARMS if part == "width" else DEPTH_ARMS
    first, *others = sizes
    tuned = complete(data.curve(part, next(iter(arms)), first))
    if tuned.empty:
        return "Not run yet."
    carried = best_lr(tuned)
    unit = "width" if part == "width" else "layers"
    heads = [unit, "method", "best lr", "loss there", f"loss at {lr_text(carried)}"]
    heads += ["regret of the carried lr", "95% interval", "seeds"]
    rows = []
    for scale in others:
        for name, arm in arms.items():
            curve = data.curve(part, name, scale)
            if carried not in complete(curve) or len(complete(curve).columns) < 3:
                continue
            best = best_lr(curve)
            of = regret(curve, carried)
            here = Interval.of(list(curve[carried].dropna()))
            there = Interval.of(list(curve[best].dropna()))
            edge = " (end of the grid)" if best in (curve.columns[0], curve.columns[-1]) else ""
            rows.append([
                sizes[scale], arm.title, lr_text(best) + edge, _loss(there.mean), _loss(here.mean),
                _loss(of.mean), _range(of), of.n,
            ])  # fmt: skip
    return table(heads, rows)


def compared(data: Data) -> str:
    """At the widest scale: loss at the carried lr, less that of the other methods."""
    carried = data.choice.lr
    curves = {name: data.curve("width", name, WIDEST) for name in ARMS}
    curves = {name: c for name, c in curves.items() if carried in complete(c)}
    heads = ["", "loss at the carried lr", "minus mup-full", "minus mup-no", "minus sp, tuned here"]
    rows = []
    for name, curve in curves.items():
        cells = [ARMS[name].title, _spread(Interval.of(list(curve[carried].dropna())))]
        for other in ("mup-full", "mup-no", "sp"):
            if other == name or other not in curves:
                cells.append("")
                continue
            lr = best_lr(curves["sp"]) if other == "sp" else carried
            cells.append(_signed(difference(curve, carried, curves[other], lr)))
        rows.append(cells)
    return table(heads, rows)


def headline(data: Data) -> str:
    """The table of README.md: regret and losses at the widest scale."""
    carried = data.choice.lr
    rows = []
    for name in ("mup-full", "maxP", "maxP-frozen", "mup-no", "sp"):
        curve = data.curve("width", name, WIDEST)
        if carried in complete(curve):
            best, of = best_lr(curve), regret(curve, carried)
            losses = [_loss(curve[lr].mean()) for lr in (carried, best)]
            rows.append([f"`{name}`", losses[0], f"{losses[1]} at {lr_text(best)}", _loss(of.mean)])
    return table(["method", "loss at the carried lr", "loss at the best lr", "regret"], rows)


def published(data: Data) -> str:
    """maxP-frozen minus mup-no at each width, at the carried lr and each at its best."""
    carried = data.choice.lr
    arms = {name: ARMS[name] for name in ("maxP-frozen", "maxP-frozen-unbounded", "mup-no-head")}
    rows = []
    for scale, width in list(WIDTHS.items())[1:]:
        other = data.curve("width", "mup-no", scale)
        for name, arm in arms.items():
            curve = data.curve("width", name, scale)
            if carried in complete(curve) and carried in complete(other):
                tuned = difference(curve, best_lr(curve), other, best_lr(other))
                here = difference(curve, carried, other, carried)
                rows.append([width, arm.title, _signed(here), _signed(tuned)])
    heads = ["width", "method", "minus mup-no, carried lr", "minus mup-no, each at its best lr"]
    return table(heads, rows) if rows else "Not run yet."


def recipes(data: Data) -> str:
    """A row per change to the recipe: maxP-frozen beside mup-no."""
    carried = data.choice.lr
    rows = []
    for name, title in {"": "nothing", **{n: r.title for n, r in RECIPES.items()}}.items():
        ours, theirs = recipe_curves(data, name)
        if not all(len(complete(curve).columns) >= 3 for curve in (ours, theirs)):
            continue
        of = [(curve, best_lr(curve)) for curve in (ours, theirs)]
        row = [title, *(f"{curve[lr].mean():.3f} at {lr_text(lr)}" for curve, lr in of)]
        row.append(_signed(difference(ours, carried, theirs, carried)))
        rows.append([*row, _signed(difference(*of[0], *of[1]))])
    heads = ["changed", "maxP-frozen, best lr", "mup-no, best lr"]
    heads += ["difference, carried lr", "difference, each at its best lr"]
    return table(heads, rows) if rows else "Not run yet."


def recipe_curves(data: Data, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The curves of maxP-frozen and mup-no under a recipe; without a name, under that of all."""
    changed = RECIPES.get(name)
    curves = [
        data.curve(PART, arm_of(name, method), WHERE)
        if changed and method in changed.methods
        else data.curve("width", method, WHERE)
        for method in ("maxP-frozen", "mup-no")
    ]
    return curves[0], curves[1]


def powers(data: Data) -> str:
    """Measured and predicted power of the best lr over width."""
    carried = data.choice.lr
    heads = ["", "best lr over width, measured power", "95% interval", "predicted", "decided by"]
    rows = []
    for name, arm in ARMS.items():
        curves = {size: data.curve("width", name, scale) for scale, size in WIDTHS.items()}
        known = {size: c for size, c in curves.items() if len(complete(c).columns) >= 3}
        if len(known) < len(WIDTHS):
            continue
        of = power(known)
        used = data.used("width", name, WIDEST, carried)
        measured = data.alignment("width", name, WIDEST, carried)
        cells = ["", ""]  # maxP-frozen measures no site that its table covers
        if {"hidden", "readout"} <= set(measured["type"]):
            forecast, decides = predicted(used, needed(measured, name == "sp"))
            cells = [f"{forecast:+.2f}", decides]
        rows.append([arm.title, f"{of.mean:+.2f}", _range(of, 2), *cells])
    return table(heads, rows)


def ablations(data: Data) -> str:
    """Loss of maxP with one thing changed, less that of maxP, at the carried lr."""
    carried = data.choice.lr
    ours = data.curve("width", "maxP", ABLATED)
    rows = []
    for name, arm in ABLATIONS.items():
        curve = data.curve("ablation", name, ABLATED)
        if carried in complete(curve):
            of = difference(curve, carried, ours, carried)
            rows.append([arm.title, lr_text(carried), _loss(curve[carried].mean()), _signed(of)])
    tuned, here = (data.curve("ablation", "no-base", scale) for scale in (BASE, ABLATED))
    if len(complete(tuned).columns) >= 3 and not complete(here).empty:
        lr = best_lr(tuned)
        if lr in complete(here):
            of = difference(here, lr, ours, carried)
            rows.append(
                ["no base, tuned at cpu64", lr_text(lr), _loss(here[lr].mean()), _signed(of)]
            )
    return table(["changed", "lr", "loss", "minus maxP"], rows) if rows else "Not run yet."


def objectives(data: Data, solved: dict[str, C]) -> str:
    """How other objectives of the program change c and the loss of maxP-frozen."""
    carried = data.choice.lr
    ours = data.curve("width", "maxP-frozen", ABLATED)
    rows = []
    for name in OBJECTIVES:
        curve = data.curve(OBJECTIVE, name, ABLATED)
        if carried in complete(curve):
            of = difference(curve, carried, ours, carried)
            changes = [c - solved["sum"][site] for site, c in solved[name].items()]
            cells = [
                f"{min(changes):+.3f} to {max(changes):+.3f}",
                f"{round(sum(changes), 3) + 0.0:+.3f}",
            ]
            rows.append([name, *cells, _loss(curve[carried].mean()), _signed(of)])
    heads = [
        "objective",
        "c minus that of the sum, by site",
        "sum of these",
        "loss",
        "minus the sum's",
    ]
    return table(heads, rows) if rows else "Not run yet."


def horizon(data: Data) -> str:
    """A row per number of tokens: the best lr beside that of the law, and the regret."""
    curves = horizon_curves(data)
    if not curves:
        return "Not run yet."
    seeds, (shortest, first) = seeds_of(curves), next(iter(curves.items()))
    tuned, start = best_lr(first, seeds), _geometric(optima(first, seeds))
    rows = []
    for tokens, curve in curves.items():
        law = f"{start * (tokens / shortest) ** LAW:.2e}"
        steps = tokens // STEP_TOKENS
        cells = [steps, f"{tokens:,}", *_minimum(curve, seeds), law, *_at(curve, tuned, seeds)]
        rows.append([*cells, seeds])
    heads = ["steps", "tokens", "best lr", "minimum of the parabola", "95% interval"]
    heads += [f"tokens^{LAW}", "loss at the best lr", f"loss at {lr_text(tuned)}"]
    return table([*heads, f"regret of {lr_text(tuned)}", "95% interval", "seeds"], rows)


def muon(data: Data, arm: str = "mup-full") -> str:
    """A row per width: the best lr of Muon, its regret, and its loss beside that of AdamW.

    AdamW has no runs with four times the tokens per step, so that table has no such column.
    """
    curves = muon_curves(data, arm)
    if not curves:
        return "Not run yet."
    seeds = seeds_of(curves)
    tuned = best_lr(next(iter(curves.values())), seeds)
    scales = {width: scale for scale, width in MUON_WIDTHS.items()}
    rows = []
    for width, curve in curves.items():
        best, place, _ = _minimum(curve, seeds)
        row = [width, best, place, *_at(curve, tuned, seeds)[:3], seeds]
        if arm != LARGE_BATCH:
            adamw = data.curve("width", "mup-full", scales[width])
            beside = difference(curve, best_lr(curve, seeds), adamw, best_lr(adamw))
            row.append(f"{beside.mean:+.3f}")
        rows.append(row)
    heads = ["width", "best lr", "minimum of the parabola", "loss at the best lr"]
    heads += [f"loss at {lr_text(tuned)}", f"regret of {lr_text(tuned)}"]
    beside_adamw = ["minus AdamW, each at its best lr"] if arm != LARGE_BATCH else []
    return table([*heads, "seeds", *beside_adamw], rows)


def muon_methods(data: Data) -> str:
    """A row per method at `ABLATED` with Muon, at the lr carried from the base."""
    carried = best_lr(data.curve("muon", LARGE_BATCH, BASE))
    ours = muon_method_curve(data, "mup-full")
    rows = []
    for method in ("mup-full", *MUON_METHODS):
        curve = muon_method_curve(data, method)
        if len(complete(curve).columns) < 3:
            continue
        best, beside = best_lr(curve), ["", ""]
        if method != "mup-full":
            beside = [
                _signed(difference(curve, carried, ours, carried)),
                _signed(difference(curve, best, ours, best_lr(ours))),
            ]
        losses = [_loss(value) for value in (curve[best].mean(), curve[carried].mean())]
        cost = _loss(regret(curve, carried).mean)
        rows.append([f"`{method}`", lr_text(best), *losses, cost, *beside])
    heads = ["method", "best lr", "loss there", f"loss at {lr_text(carried)}"]
    heads += [f"regret of {lr_text(carried)}", "minus mup-full, carried lr", "each at its best lr"]
    return table(heads, rows)


def muon_method_curve(data: Data, method: str) -> pd.DataFrame:
    """Losses of a method with Muon at `ABLATED`, with four times the tokens per step."""
    arm = LARGE_BATCH if method == "mup-full" else method_arm(method)
    return data.curve("muon", arm, ABLATED)


def _minimum(curve: pd.DataFrame, seeds: int) -> list[str]:
    """The best lr of the grid; and the lr at the minimum of a parabola, with its interval."""
    logs = Interval.of(list(np.log(optima(curve, seeds))))
    low, mean, high = (f"{math.exp(value):.2e}" for value in (logs.low, logs.mean, logs.high))
    lrs, best = complete(curve, seeds).columns, best_lr(curve, seeds)
    edge = " (end of the grid)" if best in (lrs[0], lrs[-1]) else ""
    return [lr_text(best) + edge, mean, f"{low} to {high}" if logs.n > 1 else ""]


def _at(curve: pd.DataFrame, tuned: float, seeds: int) -> list[str]:
    """Loss at the best lr and at ``tuned``; the regret of ``tuned``, with its interval."""
    best = best_lr(curve, seeds)
    if tuned not in complete(curve, seeds):
        return [_loss(curve[best].mean()), "", "", ""]
    of = regret(curve, tuned, seeds)
    return [*(_loss(curve[lr].mean()) for lr in (best, tuned)), _loss(of.mean), _range(of)]


def _geometric(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def _power_text(curves: dict[int, pd.DataFrame]) -> str:
    if len(curves) < 2:
        return "not run yet"
    of = power(curves, seeds_of(curves))
    return f"{of.mean:+.2f}" + (f" (95% interval {_range(of, 2)})" if of.n > 2 else "")


def _factor(value: float) -> str:
    return "1/3" if value < 1 else f"{value:g}"


def _loss(value: float) -> str:
    return "diverged" if math.isinf(value) else f"{value:.3f}"


def _range(of: Interval, digits: int = 3) -> str:
    return "" if math.isnan(of.low) else f"{of.low:.{digits}f} to {of.high:.{digits}f}"


def _spread(of: Interval) -> str:
    if of.n == 0:
        return ""
    return _loss(of.mean) + ("" if math.isnan(of.low) else f" ± {of.high - of.mean:.3f}")


def _signed(of: Interval) -> str:
    if math.isnan(of.low):
        return f"{of.mean:+.3f} (n = {of.n})"
    verdict = "better" if of.high < 0 else "worse" if of.low > 0 else "cannot tell"
    return f"{of.mean:+.3f} ± {of.high - of.mean:.3f}, {verdict}"
