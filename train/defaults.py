"""The defaults that runs on text and on images share."""

from typing import Any

from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config.configs import DebugConfig, TrainingConfig

from train import cpu
from train.checkpoint import CheckedCheckpointManager
from train.method.settings import MaxPSettings
from train.model.scales import AnyScale


def shared_fields(
    size: AnyScale, settings: MaxPSettings, *, seed: int, steps: int, folder: str
) -> dict[str, Any]:
    """Fields of `train.trainer.MaxPTrainer.Config`."""
    accelerator = cpu.has_accelerator()
    return {
        "scale": size.name,
        "maxp": settings,
        "dump_folder": folder,
        "optimizer": default_adamw(lr=settings.lr),
        "lr_scheduler": LRSchedulersContainer.Config(
            warmup_steps=max(1, min(steps // 10, 2000)), decay_ratio=0.2, min_lr_factor=0.0
        ),
        "training": TrainingConfig(
            local_batch_size=size.local_batch_size,
            global_batch_size=size.global_batch_size,
            seq_len=size.seq_len,
            steps=steps,
            mixed_precision_param="bfloat16" if accelerator else "float32",
            disable_cuda_graphs=not accelerator,
        ),
        "checkpoint": CheckedCheckpointManager.Config(
            enable=not size.on_corpus,
            interval=500,
            last_save_model_only=False,
            initial_load_model_only=False,
        ),
        "debug": DebugConfig(
            seed=seed,
            # Kernels on a CPU are deterministic anyway; on a GPU this costs speed.
            deterministic=size.on_corpus,
            deterministic_warn_only=True,
            enable_structured_logging=False,
        ),
    }


def shared_validation(steps: int) -> dict[str, Any]:
    """Fields of a validator's configuration."""
    return {"enable": True, "freq": max(1, steps // 2)}


def shared_metrics(size: AnyScale) -> dict[str, Any]:
    """Fields of the metrics' configuration."""
    return {
        "log_freq": 1 if size.on_corpus else 10,
        "enable_tensorboard": True,
        "disable_color_printing": True,
    }
