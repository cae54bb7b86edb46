"""PyPI's torchvision 0.28.0 next to a CPU build of torch 2.13.

Its compiled operators do not load there, and ``import torchvision`` fails where it describes two of
them. So do timm, transformers, lightning and torchmetrics, which import it. None of them calls the
two for what is done here, so they are only declared. Delete this module once the tests run with
torch 2.15 and torchvision 0.29.2, which match.

In the environment of scripts/env.sh, scripts/torchvision_cpu.pth calls `install` in time.
"""

import importlib.util
from pathlib import Path

import torch

_LIBRARY = "torchvision"
_DECLARED: list[torch.library.Library] = []  # a library's operators end with it


def install() -> None:
    """Declare the operators that torchvision needs to be imported, unless its own ones load.

    Call it before the first import of torchvision. It has no effect without torchvision.
    """
    spec = importlib.util.find_spec("torchvision")
    if _DECLARED or spec is None or spec.origin is None:
        return
    compiled = next(Path(spec.origin).parent.glob("_C*"), None)
    try:
        if compiled is not None:
            torch.ops.load_library(compiled)
            return
    except OSError:  # built for another torch
        pass
    library = torch.library.Library(_LIBRARY, "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)
