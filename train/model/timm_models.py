"""Models of timm by name and arguments: ``NAME,key=value,...``."""

import ast
import re
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from train.model.image_scales import TIMM

_NAME = re.compile(r"[\w.+-]+", re.ASCII)
_VALUE = re.compile(r"[\w.+(), -]*", re.ASCII)  # part of the name of a run's folder
_OF_DATA = {
    "num_classes": "the classes of the images set it",
    "in_chans": "pass --dataloader.channels",
    "img_size": "pass --dataloader.image_size",
    "pretrained": "training starts from random weights",
    "checkpoint_path": "training starts from random weights",
}


def import_timm(flag: str) -> Any:
    """timm, which is imported only where it is needed.

    Args:
        flag: that needs it, for the message.

    Raises:
        ValueError: timm or torchvision is not installed.
    """
    from train import torchvision_compat

    torchvision_compat.install()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{flag}: the package {error.name} is not installed; pip install 'maxp[vision]'"
        ) from None
    return timm


def parse_model(model: str, flag: str) -> tuple[str, dict[str, Any]]:
    """The name and the keyword arguments of ``NAME,key=value,...``.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    name, _, rest = model.partition(",")
    try:
        if not _NAME.fullmatch(name):
            raise SyntaxError
        call: Any = ast.parse(f"_({rest})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise SyntaxError
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        if not all(_VALUE.fullmatch(ast.unparse(k.value)) for k in call.keywords):
            raise SyntaxError
    except (SyntaxError, ValueError):
        raise ValueError(
            f"{flag} {TIMM}{model}: write {TIMM}NAME,KEY=VALUE,... with numbers, True, False or "
            f"tuples of numbers as values, for example {TIMM}vit_tiny_patch16_224,embed_dim=64"
        ) from None
    for key, remedy in _OF_DATA.items():
        if key in arguments:
            raise ValueError(f"{flag} {TIMM}{model}: leave {key} out; {remedy}")
    return name, arguments


def timm_arguments(model: str, image_size: int, channels: int, classes: int) -> dict[str, Any]:
    """The arguments of `timm.create_model` for a model and its data."""
    name, arguments = parse_model(model, "--scale")
    cfg = import_timm(f"--scale {TIMM}{model}").get_pretrained_cfg(name)
    # Models that take images of any size have no such argument.
    fixed = {"img_size": image_size} if cfg and cfg.fixed_input_size else {}
    return {
        "model_name": name, **arguments, **fixed, "in_chans": channels, "num_classes": classes,
    }  # fmt: skip


class Counts(NamedTuple):
    """Of a model of timm: parameters, FLOPs per image, and (rows, columns) of its matrices."""

    params: int
    flops: int
    matrices: list[tuple[int, int]]


@lru_cache(maxsize=64)
def count(model: str, image_size: int, channels: int, classes: int) -> Counts:
    """Count on the meta device; a convolution is a matrix of its filters."""
    with torch.device("meta"):
        arguments = timm_arguments(model, image_size, channels, classes)
        module = import_timm(f"--scale {TIMM}{model}").create_model(**arguments).eval()
        module.requires_grad_(False)  # else torch's counter fails on modules that are given weights
        images = torch.zeros(1, channels, image_size, image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images)
    parameters = list(module.parameters())
    matrices = [(len(p), p[0].numel()) for p in parameters if p.ndim > 1]
    return Counts(sum(p.numel() for p in parameters), counter.get_total_flops(), matrices)
