"""What TensorBoard and W&B get: summaries by layer type, and one W&B run per run."""

import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchtitan.components.metrics import BaseLogger

from maxp.graph import Graph
from train.run.files import naming
from train.run.folder import read_config_file

SITE_PREFIX = "sites/"


def layer_types(graph: Graph) -> dict[str, str]:
    """By site: embedding, hidden, readout, or attention product, which has no weight."""
    return {
        site.name: site.layer_type if site.has_weight else "attention product"
        for site in graph.sites
    }


class Charts(BaseLogger):
    """torchtitan's TensorBoard and W&B, with few charts at any scale.

    The values of all sites of a layer type are one minimum, median and maximum, for example
    ``hidden/lr/median``; of a type with one site, the value itself, as ``readout/lr``.

    Args:
        built: what torchtitan has built.
        folder: named in the error of a full disk.
        types: layer type by site; a site that it does not name is a type of its own.
        all_sites: draw every site instead.
    """

    def __init__(
        self,
        built: BaseLogger,
        folder: Path,
        types: Callable[[], Mapping[str, str]],
        *,
        all_sites: bool,
    ) -> None:
        self._built, self._folder = built, folder
        self._types, self._all_sites = types, all_sites

    def log(self, metrics: dict[str, Any], step: int) -> None:
        with naming(self._folder):
            self._built.log(metrics if self._all_sites else self._summary(metrics), step)

    def _summary(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        types, drawn = self._types(), {}
        values: dict[str, list[float]] = defaultdict(list)
        for tag, value in metrics.items():
            if tag.startswith(SITE_PREFIX):
                site, name = tag.removeprefix(SITE_PREFIX).split("/")
                values[f"{types.get(site, site)}/{name}"].append(value)
            else:
                drawn[tag] = value
        for tag, several in values.items():
            if len(several) == 1:
                drawn[tag] = several[0]
            else:
                drawn[f"{tag}/min"] = min(several)
                drawn[f"{tag}/median"] = statistics.median(several)
                drawn[f"{tag}/max"] = max(several)
        return drawn

    def close(self) -> None:
        self._built.close()


def name_wandb_run(folder: Path, rank: int | None) -> None:
    """Let all starts of a run be one W&B run, unless the environment says otherwise.

    The W&B run has the id and the name of the run's folder, and W&B resumes what it has under that
    id. Its group is the scale and the method, as in ``s3_maxP``.

    Args:
        folder: of the run; one that an earlier version made has no id, and none is set.
        rank: of a process that has a W&B run of its own; None where only one process has one.
    """
    content = read_config_file(folder)
    number, config, end = content.get("id"), content["config"], "" if rank is None else f"-{rank}"
    os.environ.setdefault("WANDB_RUN_NAME", folder.resolve().name + end)
    os.environ.setdefault("WANDB_RUN_GROUP", f"{config['scale']}_{config['method']}")
    if number is not None:
        os.environ.setdefault("WANDB_RUN_ID", number + end)
        os.environ.setdefault("WANDB_RESUME", "allow")
