"""Nodes, GPUs and wall time of a job."""

import re
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from slurm.config_file import NO_OTHER_KEYS

_TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,3}):([0-5]\d):([0-5]\d)", re.ASCII)


@dataclass(frozen=True)
class Resources:
    """What one job requests.

    Attributes:
        nodes: number of nodes.
        gpus_per_node: None is all GPUs of a node.
        time: wall time, ``HH:MM:SS`` or ``D-HH:MM:SS``.
    """

    nodes: int = 1
    gpus_per_node: int | None = None
    time: str = "24:00:00"

    __pydantic_config__: ClassVar[ConfigDict] = NO_OTHER_KEYS

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError(f"nodes: {self.nodes}: must be at least 1")
        if self.gpus_per_node is not None and self.gpus_per_node < 1:
            raise ValueError(
                f"gpus_per_node: {self.gpus_per_node}: must be at least 1, or left out for all"
            )
        parse_time(self.time, "time")

    @property
    def seconds(self) -> int:
        """The wall time in seconds."""
        return parse_time(self.time, "time")


def parse_time(text: str, key: str) -> int:
    """Seconds of ``HH:MM:SS`` or ``D-HH:MM:SS``, the unambiguous ones of Slurm's forms.

    Raises:
        ValueError: another form, or zero; the message begins with ``key``.
    """
    match = _TIME.fullmatch(text)
    parts = match.groups(default="0") if match else ("0",) * 4
    days, hours, minutes, seconds = map(int, parts)
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise ValueError(f'{key}: {text!r} is no time: write "HH:MM:SS" or "D-HH:MM:SS"')
    return total
