"""Any model of timm as a scale: ``timm-NAME``, or ``timm-NAME,embed_dim=64,num_heads=4``.

After the name follow keyword arguments of `timm.create_model`, as Python literals. This module
imports timm, and torch, only where a scale is looked up.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from train.model.image_scales import TIMM, ImageScale


@dataclass(frozen=True)
class TimmScale(ImageScale):
    """One model of timm. Its sizes are counted on the model itself."""

    @property
    def model(self) -> str:
        """Name and arguments, as in the scale's name."""
        return self.name.removeprefix(TIMM)

    @property
    def matrices(self) -> list[tuple[int, int, int]]:
        return [(out, into, 1) for out, into in self._counts.matrices]

    @property
    def params(self) -> int:
        return self._counts.params

    @property
    def non_embedding_params(self) -> int:
        """All parameters: it only sorts scales by size."""
        return self.params

    @property
    def forward_flops(self) -> int:
        """FLOPs of the forward pass of one image."""
        return self._counts.flops

    @property
    def _counts(self) -> Any:
        from train.model.timm_models import count

        return count(self.model, self.image_size, self.channels, self.classes)


@lru_cache(maxsize=64)
def timm_scale(scale: str, flag: str) -> TimmScale:
    """The scale of a name that begins with `TIMM`.

    Raises:
        ValueError: one line: timm is not installed, or does not know the model; or the arguments
            cannot be read.
    """
    from train.model.timm_models import import_timm, parse_model

    name, _ = parse_model(scale.removeprefix(TIMM), flag)
    timm = import_timm(f"{flag} {scale}")
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        words = f"did you mean {', '.join(TIMM + n for n in close)}?" if close else ""
        raise ValueError(
            f"{flag} {scale}: timm {timm.__version__} has no model of this name; "
            f"{words or 'timm.list_models() lists them'}"
        )
    images = timm.get_pretrained_cfg(name)
    channels, height, _ = images.input_size if images else (3, 224, 224)
    return TimmScale(scale, "timm", dim=0, n_layers=1, image_size=height, channels=channels)
