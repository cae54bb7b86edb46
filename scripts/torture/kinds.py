"""The kinds of faults. Each is done to a run that may have begun, and says what came of it."""

from __future__ import annotations

from collections.abc import Callable

from scripts.torture import files, processes
from scripts.torture.case import Case

KINDS: dict[str, tuple[float, Callable[[Case], str]]] = {
    "SIGKILL to all ranks": (3, processes.kill_all),
    "SIGKILL to one rank": (2, processes.kill_one),
    "signal to one rank": (5, processes.stop),
    "SIGINT twice": (1, processes.stop_twice),
    "signal to torchrun": (0.7, processes.agent),
    "second trainer": (1, processes.second_trainer),
    "two trainers at once": (1, processes.two_at_once),
    "full disk": (3, processes.full_disk),
    "flipped bit in a checkpoint": (2, lambda case: files.damage(case, files.flip)),
    "zeroed range in a checkpoint": (1, lambda case: files.damage(case, files.zero)),
    "truncated file of a checkpoint": (1, lambda case: files.damage(case, files.truncate)),
    "deleted file of a checkpoint": (1, lambda case: files.damage(case, files.delete)),
    "flipped bit in the cache": (0.5, files.damage_cache),
}
"""Kind -> how often, relative to the others, and what does it."""

NEEDS_DISK = frozenset({"full disk"})
NEEDS_ONE_PROCESS = frozenset({"two trainers at once"})
