"""Settings of hypothesis for generated input."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings


def many(examples: int) -> Callable[[Any], Any]:
    """The same examples in every run, however slow the machine is."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
