"""The exponents of a model's sites: solved, and solved again as alignment is measured."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from maxp.alignment import Measured
from maxp.bounds import BOUNDS, AlignmentBounds, bounded, check_bounds
from maxp.exponents import Alignment, Exponents, OptimizerType, change_exponents
from maxp.graph import Graph
from maxp.matching import NO_TOKENS
from maxp.solver import InfeasibleProgramError, Program

logger = logging.getLogger(__name__)


class SiteExponents:
    """The exponents of every site, the solution of the program, and counts of what went wrong.

    Args:
        graph: of the sites.
        exponents: by site; their alignment is used until it is measured.
        optimizer_type: ``"adam"`` or ``"sgd"``.
        measured: the names of the sites that are measured.
        c_ema: weight of the previous c in the average with the newly solved one.
        alignment_ema: the same, for measured alignment.
        measure_bilinear: let the measured exponents of sites without a weight enter the program.
        alignment_bounds: bounds on the averages that enter the program, for sites with a weight.
        solver: as in `maxp.solver.Program`.
        warm_start: as in `maxp.solver.Program`.

    Raises:
        ValueError: an unknown ``optimizer_type``; SGD without a readout; a bound whose low is above
            its high.
        InfeasibleProgramError: no c keeps every r >= 0.
    """

    def __init__(
        self,
        graph: Graph,
        exponents: dict[str, Exponents],
        optimizer_type: OptimizerType,
        measured: Iterable[str],
        *,
        c_ema: float,
        alignment_ema: float,
        measure_bilinear: bool,
        solver: Any,
        warm_start: bool,
        alignment_bounds: AlignmentBounds | None = BOUNDS,
    ) -> None:
        check_bounds(alignment_bounds)
        self.graph, self._exponents, self._optimizer_type = graph, exponents, optimizer_type
        self.c_ema, self.alignment_ema = c_ema, alignment_ema
        self.measure_bilinear, self.alignment_bounds = measure_bilinear, alignment_bounds
        self._program = Program(graph, optimizer_type, solver=solver, warm_start=warm_start)
        solution = self._program.solve(exponents)
        self.targets, self.c, self.r = solution.c, dict(solution.c), solution.r
        self.measured: dict[str, Measured] = dict.fromkeys(measured, (None, None, None))
        self._measurable = tuple(self.measured)
        self.refused: Counter[str] = Counter()
        self.zero_terms: Counter[str] = Counter()
        self.bounded_values: Counter[str] = Counter()
        self.without_tokens: Counter[str] = Counter()
        self.unmatched: Counter[str] = Counter()
        self.infeasible = 0
        # The averages of measured alignments, before bounds.
        self._raw = {name: e.alignment for name, e in exponents.items()}
        self._averaged: set[tuple[str, int]] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load a pickle, which may be of a version that did not count what was not measured."""
        self.__dict__.update({"without_tokens": Counter(), "unmatched": Counter()} | state)

    @property
    def alignment(self) -> dict[str, Alignment]:
        """The alignment that the program uses, by site; embeddings have none."""
        embeddings = {site.name for site in self.graph.sites if site.layer_type == "embedding"}
        return {n: e.alignment for n, e in self._exponents.items() if n not in embeddings}

    def set_measured(
        self, measured: dict[str, Measured], missed: Mapping[tuple[str, str], int] | None = None
    ) -> None:
        """Average newly measured alignments with the previous ones, and bound the averages.

        The next `solve` uses them.

        Args:
            measured: by site; a site without an entry keeps its alignment.
            missed: how many calls were not measured, by site and reason (`maxp.matching`).
        """
        for (name, reason), count in (missed or {}).items():
            counter = self.without_tokens if reason == NO_TOKENS else self.unmatched
            if counter is self.unmatched and name not in counter:
                logger.warning(
                    "%s: not measured, since it is not known which tokens it reads with the "
                    "initial and the current weights; give it an alignment_overrides",
                    name,
                )
            counter[name] += count
        self.measured = dict.fromkeys((n for n, _ in missed or ()), (None, None, None)) | measured
        weighted = {site.name for site in self.graph.sites if site.has_weight}
        for name, values in measured.items():
            pairs = enumerate(zip(self._raw[name], values, strict=True))
            raw = Alignment(*(self._average(name, i, old, new) for i, (old, new) in pairs))
            if name in weighted or self.measure_bilinear:
                self._raw[name] = raw
                used = self._set_alignment(name)
                for new, before, after in zip(values, raw, used, strict=True):
                    if new is not None and math.isfinite(new) and before != after:
                        self.bounded_values[name] += 1

    def _set_alignment(self, name: str) -> Alignment:
        """Let the averages of a site enter the program, bounded if they are measured."""
        alignment, weighted = self._raw[name], {s.name for s in self.graph.sites if s.has_weight}
        if name in weighted and any((name, i) in self._averaged for i in range(3)):
            alignment = bounded(alignment, self.alignment_bounds)
        self._exponents[name] = replace(self._exponents[name], alignment=alignment)
        return alignment

    def _average(self, name: str, term: int, previous: float, new: float | None) -> float:
        if new is None:
            self.zero_terms[name] += 1
            return previous
        if not math.isfinite(new):
            self.refused[name] += 1
            logger.warning("%s: refused a measured alignment of %s", name, new)
            return previous
        # The first measurement replaces the preset, so that only measurements are averaged.
        keep = self.alignment_ema if (name, term) in self._averaged else 0.0
        self._averaged.add((name, term))
        return keep * previous + (1 - keep) * new

    def solve(self) -> None:
        """Solve with the present alignment and move c towards the solution.

        If the program has no solution, log and count it, and keep c.
        """
        try:
            self.targets = self._program.solve(self._exponents).c
        except InfeasibleProgramError as error:
            self.infeasible += 1
            logger.warning("kept the previous c: %s (%d so far)", error, self.infeasible)
        else:
            keep = self.c_ema
            self.c = {n: keep * self.c[n] + (1 - keep) * t for n, t in self.targets.items()}
        self._set_r()

    def _set_r(self) -> None:
        self.r = change_exponents(self.graph, self._exponents, self.c, self._optimizer_type)

    def solution_state(self) -> dict[str, Any]:
        """The state of measuring and solving, without tensors; for other ranks or a resumed run."""
        return {
            "c": dict(self.c),
            "targets": dict(self.targets),
            "alignment": {name: tuple(raw) for name, raw in self._raw.items()},
            "measured": dict(self.measured),
            "averaged": sorted(self._averaged),
            "refused": {name: self.refused[name] for name in self._measurable},
            "zero_terms": {name: self.zero_terms[name] for name in self._measurable},
            "bounded_values": {name: self.bounded_values[name] for name in self._measurable},
            "infeasible": self.infeasible,
            # Only where there are any: earlier states, and those of other models, have none.
            **({"without_tokens": dict(self.without_tokens)} if self.without_tokens else {}),
            **({"unmatched": dict(self.unmatched)} if self.unmatched else {}),
        }

    def load_solution_state(self, state: Mapping[str, Any]) -> None:
        """Continue from another rank's, or an earlier run's, `solution_state`.

        Raises:
            ValueError: the state is of a model with other sites.
        """
        if different := sorted(state["alignment"].keys() ^ self._exponents.keys()):
            raise ValueError(
                f"the state is of a model with other sites: {', '.join(different[:8])}"
            )
        # A weight may have been frozen in the earlier run, or be frozen here.
        self.c = {name: state["c"].get(name, c) for name, c in self.c.items()}
        self.targets = {name: state["targets"].get(name, c) for name, c in self.targets.items()}
        self._raw = {name: Alignment(*state["alignment"][name]) for name in self._exponents}
        self.measured = {name: tuple(values) for name, values in state["measured"].items()}
        self._averaged = {(name, i) for name, i in state["averaged"]}
        self.refused, self.zero_terms = +Counter(state["refused"]), +Counter(state["zero_terms"])
        # A state of a version without bounds does not contain this count.
        self.bounded_values = +Counter(state.get("bounded_values", {}))
        self.without_tokens = Counter(state.get("without_tokens", {}))
        self.unmatched = Counter(state.get("unmatched", {}))
        self.infeasible = state["infeasible"]
        for name in self._exponents:
            self._set_alignment(name)
        self._set_r()
