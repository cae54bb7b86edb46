"""The run that a checkpoint belongs to, and the folder in which a run keeps its checkpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from train.run.folder import CONFIG, RunFolderError, read_config_file
from train.run.identity import ADAMW, identity, run_name


@dataclass(frozen=True)
class Owner:
    """The run that a checkpoint belongs to.

    Attributes:
        name: scale, method, lr and seed of the run, as `run_name` writes them.
        identity: of the experiment, as the run's config.json records it.
    """

    name: str
    identity: str

    def __str__(self) -> str:
        return f"{self.name} (identity {self.identity})"


def owner(run: Path) -> Owner:
    """The run of a folder.

    Raises:
        RunFolderError: the folder holds no run, or the run of another program.
    """
    content = read_config_file(run)
    config = content["config"]
    try:
        optimizer = config.get("maxp", {}).get("optimizer", ADAMW)
        name = run_name(config["scale"], config["method"], config["lr"], config["seed"], optimizer)
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{run / CONFIG} is not the configuration of a run: {error}") from None
    return Owner(name, content.get("identity") or identity(config))


def checkpoint_folder(run: Path, folder: str) -> Path:
    """The folder of a run's checkpoints.

    A folder outside the run's own may be shared by many runs, so each run has a subfolder there.
    It is named by the run, its identity and the id of its folder: the same experiment in two
    folders is two runs.

    Args:
        run: the run's folder.
        folder: ``--checkpoint.folder``, absolute or relative to ``run``.

    Raises:
        RunFolderError: as `owner`; only for a folder outside the run's own.
    """
    # Not resolved: a link inside the run's folder is the run's own.
    inside = os.path.abspath(run / folder)
    if Path(inside).is_relative_to(os.path.abspath(run)):
        return run / folder
    mine = owner(run)
    parts = (mine.name, mine.identity, read_config_file(run).get("id"))
    return Path(inside) / "_".join(part for part in parts if part)
