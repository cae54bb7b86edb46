"""The cost of a run on images by arithmetic, with the conventions of `train.model.costs`."""

from train.model.image_scales import ImageScale
from train.model.timm_scales import TimmScale

FLOAT32 = 4


def forward_flops(scale: ImageScale) -> int:
    """FLOPs of the forward pass of one image."""
    if isinstance(scale, TimmScale):
        return scale.forward_flops
    products = sum(out * into * times for out, into, times in scale.matrices)
    scores = scale.n_layers * 2 * scale.tokens**2 * scale.dim if scale.kind == "vit" else 0
    return 2 * (products + scores)


def training_flops(scale: ImageScale) -> int:
    """FLOPs of forward and backward pass of one image."""
    return 3 * forward_flops(scale)


def measurement_flops(scale: ImageScale, images: int, rows: int) -> int:
    """FLOPs of one measurement on fresh images: two forward passes, and three products per site.

    Args:
        scale: of the run.
        images: of a probe.
        rows: tokens, or images, that each site is measured on.
    """
    _, *measured = scale.matrices  # not of the embedding
    return 2 * images * forward_flops(scale) + 3 * 2 * rows * sum(o * i for o, i, _ in measured)


def trained_bytes(scale: ImageScale, *, muon: bool = False) -> int:
    """Bytes of parameters, gradients and AdamW's two moments in float32.

    With ``muon``, matrices of hidden layers have one moment.
    """
    _, *hidden, _ = scale.matrices
    return FLOAT32 * (4 * scale.params - muon * sum(out * into for out, into, _ in hidden))


def measuring_bytes(scale: ImageScale, *, resample_w0: bool) -> int:
    """Bytes that measuring keeps: the initial parameters, or only those that are not redrawn."""
    matrices = sum(out * into for out, into, _ in scale.matrices)
    return FLOAT32 * (scale.params - matrices if resample_w0 else scale.params)
