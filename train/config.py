"""From a scale and a method to torchtitan's configuration of a run."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config.configs import (
    CompileConfig,
    DebugConfig,
    ParallelismConfig,
    TrainingConfig,
)
from torchtitan.distributed.activation_checkpoint import SelectiveAC
from torchtitan.models.llama3 import Llama3StateDictAdapter, parallelize_llama
from torchtitan.protocols.model_spec import ModelSpec

from train import cpu, torch_compat
from train.checkpoint import CheckedCheckpointManager
from train.data.corpus import prepare_embedded
from train.data.loader import TextDataLoader
from train.method.settings import MaxPSettings
from train.metrics import HeldOutValidator, RunMetrics
from train.model.llama3 import model_config
from train.model.scales import LLAMA3_VOCABULARY, Scale, compute_steps, get_scale
from train.run.identity import run_name
from train.trainer import MaxPTrainer

LLAMA3_TOKENIZER = "assets/hf/Llama-3.1-8B"


def make_config(
    scale: str,
    method: str = "maxP",
    *,
    lr: float = 1e-2,
    seed: int = 1,
    steps: int | None = None,
    output_dir: str | None = None,
    dataset: str | None = None,
    dataset_path: str | None = None,
    tokenizer: str | None = None,
    alignment_table: str | None = None,
) -> MaxPTrainer.Config:
    """The configuration of one run; every field of it can still be changed.

    Args:
        scale: a name in `train.model.llama3.SCALES`.
        method: a name in `train.method.methods.METHODS`.
        lr: the learning rate that n^-c multiplies.
        seed: of the initial weights and the order of the data.
        steps: None is 20 tokens a non-embedding parameter.
        output_dir: the run's folder; None is ``runs/SCALE_METHOD_lr1e-02_seed1``.
        dataset: None is the embedded corpus for the CPU scales, else FineWeb-Edu.
        dataset_path: where ``local`` data, or a copy of a hub dataset, lies.
        tokenizer: folder with ``tokenizer.json``; None is the embedded corpus's own, or LLaMA-3's.
        alignment_table: for method ``maxP-frozen``.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    size = get_scale(scale)
    settings = MaxPSettings(method=method, lr=lr, alignment_table=alignment_table)
    if steps is not None and steps < 1:
        raise ValueError(f"--steps {steps}: must be at least 1")
    if seed < 0:
        raise ValueError(f"--seed {seed}: must not be negative")
    steps = compute_steps(size) if steps is None else steps
    dataset = dataset or ("embedded" if size.on_corpus else "fineweb-edu")
    small = dataset == "embedded" or (dataset == "local" and size.on_corpus)
    assets = tokenizer or (str(prepare_embedded().tokenizer) if small else LLAMA3_TOKENIZER)
    accelerator = cpu.has_accelerator()
    data: dict[str, Any] = {"dataset": dataset, "dataset_path": dataset_path, "seed": seed}
    vocab_size = _vocabulary(assets)
    cross_entropy = CrossEntropyLoss.Config(global_vocab_size=vocab_size)
    return MaxPTrainer.Config(
        scale=scale,
        maxp=settings,
        model_spec=model_spec(size, vocab_size),
        hf_assets_path=assets,
        dump_folder=output_dir or f"runs/{run_name(scale, method, lr, seed)}",
        # The chunked loss spares memory where logits are large.
        loss=cross_entropy if size.on_corpus else ChunkedLossWrapper.Config(loss_fn=cross_entropy),
        optimizer=default_adamw(lr=lr),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=max(1, min(steps // 10, 2000)), decay_ratio=0.2, min_lr_factor=0.0
        ),
        training=TrainingConfig(
            local_batch_size=size.local_batch_size,
            global_batch_size=size.global_batch_size,
            seq_len=size.seq_len,
            steps=steps,
            mixed_precision_param="bfloat16" if accelerator else "float32",
            disable_cuda_graphs=not accelerator,
        ),
        dataloader=TextDataLoader.Config(**data),
        validator=HeldOutValidator.Config(
            enable=True,
            freq=max(1, steps // 2),
            dataloader=TextDataLoader.Config(**data, split="validation"),
        ),
        metrics=RunMetrics.Config(
            log_freq=1 if size.on_corpus else 10,
            enable_tensorboard=True,
            disable_color_printing=True,
        ),
        checkpoint=CheckedCheckpointManager.Config(
            enable=not size.on_corpus,
            interval=500,
            last_save_model_only=False,
            initial_load_model_only=False,
        ),
        activation_checkpoint=SelectiveAC.Config() if scale in ("s4", "s5", "w4096") else None,
        compile=CompileConfig(enable=accelerator and not size.on_corpus),
        parallelism=ParallelismConfig(spmd_backend=torch_compat.spmd_backend()),
        debug=DebugConfig(
            seed=seed,
            # On a CPU kernels are deterministic anyway; on a GPU this costs speed.
            deterministic=size.on_corpus,
            deterministic_warn_only=True,
            enable_structured_logging=False,
        ),
    )


def model_spec(scale: Scale, vocab_size: int) -> ModelSpec:
    """What torchtitan needs to build and shard the model."""
    return ModelSpec(
        name="llama3",
        flavor=scale.name,
        model=model_config(scale, vocab_size),
        parallelize_fn=parallelize_llama,
        pipelining_fn=None,
        post_optimizer_build_fn=None,
        state_dict_adapter=Llama3StateDictAdapter,
    )


def match_tokenizer(config: MaxPTrainer.Config) -> None:
    """Give the model the vocabulary of the tokenizer that the configuration now names.

    Raises:
        ValueError: there is no tokenizer at ``hf_assets_path``.
    """
    found = _vocabulary(config.hf_assets_path, required=True)
    assert config.model_spec is not None
    if found != config.model_spec.model.vocab_size:
        config.model_spec = model_spec(get_scale(config.scale), found)


def _vocabulary(assets: str, *, required: bool = False) -> int:
    """The tokenizer's size; LLaMA-3's where it is not there yet."""
    file = Path(assets) / "tokenizer.json"
    if not file.is_file():
        if required:
            raise ValueError(
                f"--hf_assets_path {assets}: no tokenizer.json there; download LLaMA-3's, or pass "
                "--dataset embedded, which has its own"
            )
        return LLAMA3_VOCABULARY
    try:
        return int(Tokenizer.from_file(str(file)).get_vocab_size())
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(
            f"--hf_assets_path {assets}: tokenizer.json is corrupt ({error})"
        ) from None
