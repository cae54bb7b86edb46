"""What a table can be of and look like; apart, so that a command line needs no pandas to say so."""

from typing import Literal

Metric = Literal["validation", "train"]
Format = Literal["text", "markdown", "csv", "json", "latex"]
