"""The check of the options that the measurements share."""

from collections.abc import Sequence

from train.model.decoder_scales import DECODERS
from train.model.scales import SCALES


def check_ladder(family: str, widths: Sequence[int], seeds: int) -> None:
    """Check ``--widths``, which are those of the scales ``family``, and ``--seeds``.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    scales = (*SCALES.values(), *DECODERS.values())
    known = [scale.dim for scale in scales if scale.name == f"{family}{scale.dim}"]
    if len(set(widths)) < 2 or not set(widths) <= set(known):
        given, choices = (" ".join(map(str, numbers)) for numbers in (widths, known))
        raise ValueError(f"--widths {given}: give two different ones of {choices}")
    if seeds < 2:
        raise ValueError(f"--seeds {seeds}: must be at least 2")
