"""A forward pass that changes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from maxp.shards import reset_after_error, reshard
from maxp.trace import evaluating


@contextmanager
def passing(model: nn.Module) -> Iterator[None]:
    """For a forward pass in evaluation mode without gradients.

    After the block, also if it raised, the modules' modes, the buffers and the states of the random
    number generators are as they were before it, and what FSDP2 has gathered is freed.
    """
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = {parameter.device for parameter in model.parameters()}
    kind = next((device.type for device in devices if device.type != "cpu"), "cuda")
    indices = [device.index for device in devices if device.type == kind]
    with (
        torch.random.fork_rng(indices, device_type=kind),
        evaluating(model),
        torch.no_grad(),
    ):
        try:
            yield
            reshard(model)
        except BaseException:
            reset_after_error(model)
            raise
        finally:
            for there, name, buffer, values in buffers:
                there[name] = buffer
                buffer.data.copy_(values)
