"""torchtitan's metrics, also written to ``metrics.jsonl``, and validation at the end of a run."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch.distributed as dist
from torch import nn
from torchtitan.components.metrics import BaseLogger, LoggerContainer, MetricsProcessor
from torchtitan.components.validate import Validator

from train.charts import SITE_PREFIX, Charts, name_wandb_run
from train.run.folder import RunFolder
from train.run.metrics_log import MetricsLog

logger = logging.getLogger(__name__)

COUNT_PREFIX = "counts/"


class DivergedError(Exception):
    """The loss is no longer finite; this counts as a result of the run, not as an error."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"diverged at step {step}")


# torchtitan's tag -> the name in metrics.jsonl; "tokens" stands for what a run counts.
_NAMES = {
    "loss_metrics/global_avg_loss": "loss",
    "loss_metrics/global_max_loss": "max_loss",
    "grad_norm": "grad_norm",
    "throughput(tps)": "tokens_per_second",
    "mfu(%)": "mfu",
    "time_metrics/end_to_end(s)": "step_seconds",
    "memory/max_reserved(GiB)": "memory_gib",
    "n_tokens_seen": "tokens",
    "validation_metrics/loss": "validation_loss",
    "validation_metrics/accuracy": "validation_accuracy",
}


class JsonLinesLogger(BaseLogger):
    """Writes one record per logged step; per-site values are under ``sites``.

    Args:
        log: the file.
        unit: what the run counts, "tokens" or "images".
    """

    def __init__(self, log: MetricsLog, unit: str = "tokens") -> None:
        self._log = log
        self._names = {tag: name.replace("tokens", unit) for tag, name in _NAMES.items()}

    def log(self, metrics: dict[str, Any], step: int) -> None:
        record: dict[str, Any] = {"step": step}
        sites: dict[str, dict[str, Any]] = {}
        for tag, value in metrics.items():
            if tag == "mfu(%)" and math.isnan(value):
                continue  # a CPU has no peak FLOP/s to compare with
            if tag in self._names:
                record[self._names[tag]] = value
            elif tag.startswith(SITE_PREFIX):
                site, name = tag.removeprefix(SITE_PREFIX).split("/")
                sites.setdefault(site, {})[name] = value
            elif tag.startswith(COUNT_PREFIX):
                record[tag.removeprefix(COUNT_PREFIX)] = value
        if sites:
            record["sites"] = sites
        self._log.append(record)


class RunMetrics(MetricsProcessor):
    """Adds the values of `site_metrics` to every logged step, and writes ``metrics.jsonl``."""

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        all_sites: bool = False
        """Draw every site in TensorBoard and W&B, instead of the minimum, median and maximum by
        layer type. metrics.jsonl always has every site."""

    # Set by the trainer; the tags are ``sites/NAME/lr`` and so on.
    site_metrics: Callable[[], dict[str, float]] | None = None
    layer_types: Mapping[str, str] = MappingProxyType({})
    """By site, as from `train.charts.layer_types`; set by the trainer."""
    last_step: int = -1
    validation_metrics: Callable[[], dict[str, float]] | None = None
    """What validation measures beside the loss; set by the validator."""
    unit: ClassVar[str] = "tokens"
    """What the run counts."""

    def should_log(self, step: int) -> bool:
        # torchtitan checks the loss only at steps that it logs. If it did not log the last step, a
        # run that diverged after the last logged step would count as completed.
        return step == self.last_step or bool(super().should_log(step))

    def _build_metric_logger(self, **kwargs: Any) -> BaseLogger:
        config, folder = kwargs["config"], Path(kwargs["dump_folder"])
        if config.enable_wandb:
            name_wandb_run(folder, dist.get_rank() if config.save_for_all_ranks else None)
        built = super()._build_metric_logger(**kwargs)
        container = LoggerContainer()
        container.add_logger(
            Charts(
                built,
                folder / config.save_tb_folder,
                lambda: self.layer_types,
                all_sites=config.all_sites,
            )
        )
        if dist.get_rank() == 0:
            container.add_logger(JsonLinesLogger(RunFolder(folder).metrics(), self.unit))
        return container

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        # torchtitan logs the lr of numbered groups; site_metrics has them by name.
        extra = {k: v for k, v in (extra_metrics or {}).items() if not k.startswith("lr/")}
        if self.site_metrics is not None:
            extra |= self.site_metrics()
        super().log(step, global_avg_loss, global_max_loss, grad_norm, extra)

    def log_validation(
        self, loss: float, step: int, extra_metrics: dict[str, Any] | None = None
    ) -> None:
        """Write the validation loss.

        Raises:
            DivergedError: it is not finite; on every rank, since it is a mean over all ranks.
        """
        extra = dict(extra_metrics or {})
        if self.validation_metrics is not None:
            extra |= self.validation_metrics()
        super().log_validation(loss, step, extra)
        if not math.isfinite(loss):
            raise DivergedError(step)


def share(sequences: int, ranks: int, largest: int) -> tuple[int, int]:
    """(batch size, number of batches) per rank, to validate on ``sequences`` over all ranks.

    The batch size is at most ``largest``. If ``sequences`` is not a multiple of ``ranks``, it is
    rounded up to one, and a warning is logged.
    """
    each = -(-sequences // ranks)
    if each * ranks != sequences:
        logger.warning(
            "validating on %d sequences, not %d, so that all %d ranks get the same number",
            each * ranks,
            sequences,
            ranks,
        )
    batch = max(size for size in range(1, min(largest, each) + 1) if each % size == 0)
    return batch, each // batch


def available_sequences(config: Any, tokenizer: Any, seq_len: int) -> int:
    """``config.sequences``, or the number of held-out sequences if that is smaller."""
    reader = config.dataloader.build(
        dp_world_size=1,
        dp_rank=0,
        tokenizer=tokenizer,
        seq_len=seq_len,
        local_batch_size=1,
    )
    samples = getattr(reader, "samples", None)  # which torchtitan's own loaders do not know
    if samples is None or config.sequences <= samples:
        return int(config.sequences)
    logger.warning(
        "--validator.sequences %d: validating on %d, which is all held-out data of "
        "--training.seq_len %d",
        *(config.sequences, samples, seq_len),
    )
    return int(samples)


class HeldOutValidator(Validator):
    """Validates every ``freq`` steps; the trainer calls it after the last step.

    The sequences do not depend on the batch size or the number of ranks, so losses are comparable.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Validator.Config):
        sequences: int = 64
        """Held-out sequences to validate on, over all ranks; at most as many as there are."""

        steps: int = -1
        """Batches per rank, instead of `sequences`; -1 uses `sequences`."""

        def __post_init__(self) -> None:
            """`train.checks.check` checks the numbers; torchtitan's assertion names no flag."""

    def __init__(
        self, config: Config, *, dp_world_size: int, local_batch_size: int, **rest: Any
    ) -> None:
        if config.steps == -1:
            available = available_sequences(config, rest["tokenizer"], rest["seq_len"])
            config = replace(config, sequences=available)
            local_batch_size, steps = share(config.sequences, dp_world_size, local_batch_size)
            config = replace(config, steps=steps)
        super().__init__(
            config, dp_world_size=dp_world_size, local_batch_size=local_batch_size, **rest
        )

    validated: int = -1
    """Step of the last validation."""

    def should_validate(self, step: int) -> bool:
        return step % self.config.freq == 0

    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        super().validate(model_parts, step)
        self.validated = step
