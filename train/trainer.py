"""torchtitan's trainer with learning rates from `maxp`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Annotated, Any

import torch
import torch.distributed as dist
import tyro
from torchtitan.components.dataloader import DataloaderExhaustedError
from torchtitan.tools.logging import logger
from torchtitan.trainer import Trainer

from maxp import BOUNDS, Graph, bounded
from maxp.bounds import POSSIBLE
from maxp.w0 import site_seed
from train import cpu, torch_compat
from train.alignment_table import ALIGNMENTS, Table, kind, read_table
from train.charts import SITE_PREFIX, layer_types
from train.checks import check, global_batch_size
from train.data.loader import DataError, TextDataLoader
from train.faults import limit_collectives
from train.method.base import base_arguments
from train.method.learning_rates import SiteGroups
from train.method.methods import get_method
from train.method.optimizers import check_muon
from train.method.probe import FreshText, TrainerParametrization, draw_probe
from train.method.settings import MaxPSettings
from train.metrics import COUNT_PREFIX, DivergedError, HeldOutValidator, RunMetrics
from train.model.classifier import Classifier
from train.model.experts import unmeasured
from train.model.kinds import fused_blocks, site_graph
from train.preemption import PreemptedError, StopFlag
from train.run.folder import RunFolder
from train.run.tail import COUNTS

# torchtitan's modules are all imported by now.
cpu.install()
torch_compat.install()


def method_arguments(config: Any, graph: Graph) -> dict[str, Any]:
    """The arguments of `maxp.Parametrization` that a run's method, base and lr decide."""
    settings, method = config.maxp, get_method(config.maxp.method)
    return {
        "alignment": method.alignment,
        "lr_prefactor": settings.lr,
        "ab_overrides": method.ab,
        "c_overrides": dict.fromkeys(method.ab, 0.0) if method.one_lr else None,
        "alignment_overrides": _frozen_alignment(settings, graph) if method.needs_table else None,
        "alignment_bounds": BOUNDS if settings.bounded else None,
        **_muon(settings),
        **base_arguments(settings, config.scale, config.model_spec.model),
    }


def _muon(settings: MaxPSettings) -> dict[str, Any]:
    if settings.optimizer != "muon":
        return {}
    return {"optimizer_type": "muon", "adjust_lr_fn": settings.adjust_lr_fn}


def _frozen_alignment(settings: MaxPSettings, graph: Graph) -> Table:
    """The table; its rows for QK^T count only with ``measure_bilinear``, as measurements do."""
    assert settings.alignment_table is not None
    table = read_table(settings.alignment_table, [site.name for site in graph.sites])
    bilinear = {kind(site.name) for site in graph.sites if not site.has_weight}
    if not settings.measure_bilinear:
        table = {name: values for name, values in table.items() if kind(name) not in bilinear}
    bounds = BOUNDS if settings.bounded else POSSIBLE  # a mean over noise may be just outside
    within: Table = {
        name: bounded(values, POSSIBLE if kind(name) in bilinear else bounds)
        for name, values in table.items()
    }
    if outside := [name for name, values in table.items() if within[name] != values]:
        logger.info(
            "--maxp.alignment-table: bounded the alignment of %d kinds of site (%s)",
            len(outside),
            ", ".join(outside[:4]),
        )
    return within


def _excess(labels: torch.Tensor) -> int:
    """Entries of labels beyond one per sample: mixed images have a share of every class."""
    return labels.numel() - len(labels) if labels.is_floating_point() else 0


class MaxPTrainer(Trainer):
    """A torchtitan trainer in which every site has its own learning rate.

    It solves the program after the optimizer is built. A method that follows alignment measures it
    on separate text every ``maxp.solve_interval`` steps, after the optimizer's step, and solves
    again.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        scale: Annotated[str, tyro.conf.Suppress] = ""
        """Name of the scale; `train.config.make_config` sets it together with the model."""

        maxp: MaxPSettings = field(default_factory=MaxPSettings)

    config: Config

    def __init__(self, config: Config) -> None:
        check(config)
        self.method = get_method(config.maxp.method)
        self.measures = config.maxp.measures
        assert config.model_spec is not None
        self._model_config = config.model_spec.model
        for group in config.optimizer.param_groups:
            group.optimizer_kwargs["lr"] = config.maxp.lr
        self._own_hook = config.model_spec.post_optimizer_build_fn
        config.model_spec = replace(
            config.model_spec, post_optimizer_build_fn=self._set_learning_rates
        )
        self._stopping: str | None = None
        super().__init__(config)
        limit_collectives(config.comm.init_timeout_seconds)
        if not cpu.has_accelerator():
            cpu.use_sum_reductions(self.model_parts[0])
            if isinstance(self.dataloader, TextDataLoader):
                logger.info(
                    "no accelerator: training uses torch's attention, and attention is not masked "
                    "at document boundaries"
                )
                if unmeasured(self.parametrization.sites):
                    logger.info("no accelerator: experts are multiplied one by one, in float32")
        if isinstance(self.metrics_processor, RunMetrics):
            self.metrics_processor.site_metrics = self.site_metrics
            self.metrics_processor.layer_types = layer_types(self.parametrization.graph)
            self.metrics_processor.last_step = config.training.steps
        self._check_length(self.dataloader)
        if self.measures:
            self._capture_initial()
        # Last, since nothing restores the handlers if anything above raises.
        self._stop_flag = StopFlag(timedelta(seconds=config.comm.train_timeout_seconds))

    def _check_length(self, data: Any) -> None:
        """Refuse a run that is longer than data that does not repeat; warn if text repeats."""
        batch, samples = global_batch_size(self.config), getattr(data, "samples", None)
        steps = self.config.training.steps
        if samples is not None and not data.config.infinite and steps * batch > samples:
            kind = "sequences" if isinstance(data, TextDataLoader) else "images"
            raise DataError(
                f"--dataloader.no-infinite: the data has {samples} {kind}, which are "
                f"{samples // batch} of the {steps} steps; leave the flag out, or start in another "
                f"--output-dir with --steps {samples // batch}"
            )
        if isinstance(data, TextDataLoader):
            data.log_epochs(steps * batch)

    def _set_learning_rates(self, optimizers: Any, model_parts: Any, parallel_dims: Any) -> None:
        """torchtitan's hook after the optimizer is built: draw weights, solve, split the groups."""
        if self._own_hook is not None:
            self._own_hook(optimizers, model_parts, parallel_dims)
        settings, method = self.config.maxp, self.method
        graph = site_graph(self._model_config)
        self.parametrization = TrainerParametrization(
            self,
            model_parts[0],
            graph,
            **method_arguments(self.config, graph),
            solve_interval=settings.solve_interval,
            warmup_steps=settings.measure_from,
            sample_size=settings.probe_tokens,
            c_ema=settings.c_ema,
            alignment_ema=settings.alignment_ema,
            resample_w0=settings.resample_w0,
            warm_start=settings.warm_start,
            measure_bilinear=settings.measure_bilinear,
            seed=self.config.debug.seed,
            fused=None if method.needs_table else fused_blocks(self._model_config),
        )
        check_muon(optimizers, self.parametrization)
        if held := unmeasured(self.parametrization.sites):
            logger.info(
                "%d weights of routed experts are not measured: they keep alignment %s (%s, ...)",
                len(held), method.alignment, held[0],
            )  # fmt: skip
        missing = self.parametrization.measured.keys() & self.parametrization.weights.keys()
        if method.needs_table and missing:
            raise ValueError(
                f"--maxp.alignment-table {settings.alignment_table}: no alignment for "
                f"{', '.join(sorted(missing)[:4])}; export a table from a run with these layers"
            )
        self.groups = SiteGroups(
            optimizers,
            self.parametrization.own_parameters,
            rest=self.parametrization.rest,
            follow=[
                *(["weight_decay"] if settings.weight_decay == "follow" else []),
                *(["eps"] if settings.epsilon == "follow" else []),
            ],
            independent_decay=settings.independent_weight_decay,
        )
        self.groups.set_factors(self.parametrization.factors())

    def _capture_initial(self) -> None:
        config = self.config
        text: dict[str, Any] = {
            "dataloader": config.dataloader,
            "tokenizer": self.tokenizer,
            "seq_len": config.training.seq_len,
            "sequences": config.maxp.probe_sequences,
        }
        if config.maxp.probe == "fixed":
            self.parametrization.capture_initial(draw_probe(**text), any_batch=False)
        else:
            self.parametrization.measure_on(FreshText(**text))

    def train(self) -> None:
        """torchtitan's loop, and validation after its last step.

        Raises:
            DivergedError: the loss or the validation loss is not finite.
            PreemptedError: a rank received a signal; all ranks have stopped after the same step.
        """
        super().train()
        if self._stopping is not None:
            self.checkpointer.maybe_wait_for_saving()
            dist.barrier()  # torchrun stops the other ranks when the first one ends
            saved = self.config.checkpoint.enable and not self.config.checkpoint.load_only
            raise PreemptedError(self.step, self._stopping, saved=saved)
        # Not in the loop: a run that is stopped after its last checkpoint resumes without steps.
        validator = self.validator if self.config.validator.enable else None
        if isinstance(validator, HeldOutValidator) and validator.validated != self.step:
            validator.validate(self.model_parts, self.step)

    def train_step(self, data_iterator: Iterator[Any]) -> None:
        """torchtitan's step; then, where a measurement is due, measure and solve.

        Raises:
            DivergedError: the loss is not finite.
            DataError: the data ended; torchtitan would take that for the end of the run.
        """
        self._used_lrs = self.groups.lrs()
        if isinstance(self._model_config, Classifier.Config):
            # Some models of timm have dropout: it must go on after a resume as without a stop.
            torch.manual_seed(site_seed(self.config.debug.seed or 0, f"step {self.step}"))
        try:
            super().train_step(data_iterator)
        except DataloaderExhaustedError as error:
            made = self.step - 1
            raise DataError(
                f"--dataloader.no-infinite: the data ended after step {made} of "
                f"{self.config.training.steps}; leave the flag out, or start over in another "
                f"--output-dir with --steps {made}"
            ) from error
        except RuntimeError as error:
            if torch_compat.is_divergence(error):
                raise DivergedError(self.step) from error
            raise
        if self.measures and self.parametrization.due(self.step):
            self.parametrization.measure()
            if self.method.follows:
                self.parametrization.solve()
                self._follow()
        if self.step < self.config.training.steps:
            self._stopping = self._stop_flag.agreed()
            if self._stopping is not None:
                self.checkpointer.interval = 1  # so that torchtitan saves after this step

    def batch_generator(self, data_iterable: Iterable[Any]) -> Iterator[Any]:
        """torchtitan's batches; it asks for them once, after it has loaded a checkpoint.

        Raises:
            CheckpointError: an initial weight is not finite.
        """
        self.parametrization.check_initial_weights()
        if self.step > 0:
            self._complete_validation()
        return self._counted(super().batch_generator(data_iterable))

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        for inputs, labels in batches:
            self.metrics_processor.ntokens_since_last_log -= _excess(labels)
            yield inputs, labels

    def post_dataloading_process(self, input_dict: dict[str, Any], labels: torch.Tensor) -> Any:
        """torchtitan's, which counts the entries of labels."""
        self.ntokens_seen -= _excess(labels)
        return super().post_dataloading_process(input_dict, labels)

    def _complete_validation(self) -> None:
        """Validate at the checkpoint's step if the run was stopped between the two."""
        validator = self.validator if self.config.validator.enable else None
        if not isinstance(validator, HeldOutValidator):
            return
        written = [False]
        if dist.get_rank() == 0:
            written = [RunFolder(self.config.dump_folder).metrics().has_validation(self.step)]
        dist.broadcast_object_list(written, src=0)
        if written[0]:
            validator.validated = self.step
        elif validator.should_validate(self.step):
            validator.validate(self.model_parts, self.step)

    def should_continue_training(self) -> bool:
        return self._stopping is None and super().should_continue_training()

    def close(self) -> None:
        if hasattr(self, "_stop_flag"):
            self._stop_flag.close()
        super().close()

    def _follow(self) -> None:
        self.groups.set_factors(self.parametrization.factors(), self.lr_schedulers.schedulers)

    def site_metrics(self) -> dict[str, float]:
        """By site, lr and c of the step just made and the last measured alignment; and counts."""
        metrics = {}
        for name, lr in self._used_lrs.items():
            metrics[f"{SITE_PREFIX}{name}/lr"] = lr
        for name, c in self.parametrization.c.items():
            metrics[f"{SITE_PREFIX}{name}/c"] = c
        for name, values in self.parametrization.measured.items():
            for label, value in zip(ALIGNMENTS, values, strict=True):
                if value is not None:
                    metrics[f"{SITE_PREFIX}{name}/{label}"] = value
        for reason, count in self._counts().items():
            metrics[f"{COUNT_PREFIX}{reason}"] = count
        return metrics

    def _counts(self) -> dict[str, int]:
        """`COUNTS` that are not zero."""
        skipped = getattr(self.dataloader, "skipped", 0)
        return self.parametrization.counts() | ({"skipped_images": skipped} if skipped else {})

    def remarks(self) -> str | None:
        """How often a previous value was kept, in words; None if it never was."""
        counts = self._counts()
        # A bound that acts is no fault: it is in the metrics and in the notes of tables.
        faults = {reason: count for reason, count in counts.items() if reason != "bounded"}
        return ", ".join(f"{COUNTS[reason]}: {count}" for reason, count in faults.items()) or None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "maxp": self.parametrization.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Not the checkpoint's count: it is of one rank, and the number of ranks may have changed.
        training = self.config.training
        sequences = self.gradient_accumulation_steps * training.local_batch_size
        self.ntokens_seen = self.step * sequences * training.seq_len
        self.parametrization.load_state_dict(state_dict["maxp"])
        self._follow()
        if dist.get_rank() == 0:  # the steps logged after the checkpoint are about to be repeated
            RunFolder(self.config.dump_folder).metrics().rewind(self.step)
