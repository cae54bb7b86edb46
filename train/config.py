"""A run's own flags, and the torchtitan configuration that is made from them."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tokenizers import Tokenizer
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.config.configs import (
    CompileConfig,
    ParallelismConfig,
)
from torchtitan.distributed.activation_checkpoint import SelectiveAC

from train import cpu, torch_compat
from train.data.corpus import prepare_embedded
from train.data.loader import TextDataLoader
from train.data.store import TOKENIZER
from train.defaults import shared_fields, shared_metrics, shared_validation
from train.method.optimizers import with_muon
from train.method.settings import MaxPSettings, OptimizerName
from train.metrics import HeldOutValidator, RunMetrics
from train.model.kinds import fused_blocks, site_graph
from train.model.scales import (
    LLAMA3_VOCABULARY,
    Scale,
    base_of,
    compute_steps,
    find_scale,
    get_scale,
)
from train.model.specs import model_spec
from train.run.identity import ADAMW, NO_BASE, run_name
from train.trainer import MaxPTrainer

LLAMA3_TOKENIZER = "assets/hf/Llama-3.1-8B"


def _default(words: str) -> Any:
    """What ``--help`` says of a flag whose default depends on other flags."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {words})")


@dataclass
class Flags:
    """The flags of ``python -m train`` itself; `make_config` turns them into a configuration."""

    scale: str
    """debug, s1 to s5, w256 to w4096 (only the width differs), or cpu64 to cpu512 (the same at a
    size for CPUs). Other decoders: qwen3-SIZE, deepseek-SIZE, gptoss-SIZE with the published sizes,
    such as qwen3-0.6b; for CPUs qwen3-debug, qwen3-moe-debug, deepseek-debug and gptoss-debug, and
    qwen3-cpu64 to qwen3-cpu256 and so on. Image classifiers: vit-ti, vit-s, vit-b, vit-l; vit-w256
    to vit-w4096; mlp-s, mlp-m, mlp-b, mlp-l; for CPUs vit-debug, mlp-debug, vit-cpu32 to vit-cpu128
    and mlp-cpu64 to mlp-cpu256; timm-NAME is any model of timm."""

    method: str = "maxP"
    """maxP, mup-full, mup-no, maxP-frozen or sp."""

    lr: float = 1e-2
    """Learning rate that n^-c multiplies at each layer."""

    optimizer: OptimizerName = ADAMW
    """adamw; or muon, which is Muon for the matrices of hidden layers and AdamW for all else."""

    seed: int = 1
    """Seed of the initial weights and of the order of the data."""

    steps: Annotated[
        int | None, _default("20 tokens per non-embedding parameter; images: the scale's")
    ] = None
    """Steps to train."""

    output_dir: Annotated[str | None, _default("runs/SCALE_METHOD_lrLR_seedSEED")] = None
    """The run's folder."""

    dataset: Annotated[
        str | None,
        _default("embedded or digits for debug and cpu scales, else fineweb-edu or imagenet-1k"),
    ] = None
    """embedded, local, fineweb-edu, fineweb-edu-100bt, fineweb-edu-10bt or c4. Images: digits,
    folder, hub, imagenet-1k, imagenet-12k or imagenet-21k."""

    dataset_path: Annotated[str | None, _default("none; a hub dataset is streamed")] = None
    """Local text (with --dataset local), images by class (with --dataset folder), or a local copy
    of a hub dataset."""

    tokenizer: Annotated[
        str | None, _default(f"that of the embedded corpus, or {LLAMA3_TOKENIZER}")
    ] = None
    """Folder with a tokenizer.json."""

    alignment_table: Annotated[str | None, _default("none")] = None
    """File that `python -m train.alignment_table` wrote, for method maxP-frozen."""

    sites_from: Annotated[str | None, _default("the base scale")] = None
    """For --scale timm-NAME: another width of the model, timm-OTHER, with which it is compared to
    find its sites. To train the base itself, pass one."""

    fuse_qkv: bool = False
    """Compute q, k and v with one weight, as torchtitan's models do by default. They then have one
    learning rate, that of the most cautious of the three."""

    check: bool = False
    """Print what would run, and stop before the first step."""


def make_config(flags: Flags) -> MaxPTrainer.Config:
    """The configuration of one run; every field of it can still be changed.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    size, seed = find_scale(flags.scale), flags.seed
    settings = MaxPSettings(
        method=flags.method,
        optimizer=flags.optimizer,
        lr=flags.lr,
        base_scale=base_of(size.name) or NO_BASE,
        alignment_table=flags.alignment_table,
    )
    if flags.steps is not None and flags.steps < 1:
        raise ValueError(f"--steps {flags.steps}: must be at least 1")
    if seed < 0:
        raise ValueError(f"--seed {seed}: must not be negative")
    steps = compute_steps(size) if flags.steps is None else flags.steps
    folder = flags.output_dir
    if folder is None:
        folder = f"runs/{run_name(size.name, flags.method, flags.lr, seed, flags.optimizer)}"
    if isinstance(size, Scale):
        if flags.sites_from is not None:
            raise ValueError(
                f"--sites-from {flags.sites_from}: --scale {size.name} is no model of timm; "
                "leave it out"
            )
        return _text_config(flags, size, settings, steps=steps, folder=folder)
    if flags.fuse_qkv:
        raise ValueError(f"--fuse-qkv: --scale {size.name} is no language model; leave it out")
    # Imported here, so that a run on text does not need what images need.
    from train.image_config import image_config

    return image_config(
        size,
        settings,
        seed=seed,
        steps=steps,
        folder=folder,
        dataset=flags.dataset,
        dataset_path=flags.dataset_path,
        sites_from=flags.sites_from,
    )


def _text_config(
    flags: Flags, size: Scale, settings: MaxPSettings, *, steps: int, folder: str
) -> MaxPTrainer.Config:
    seed = flags.seed
    dataset = flags.dataset or ("embedded" if size.on_corpus else "fineweb-edu")
    small = dataset == "embedded" or (dataset == "local" and size.on_corpus)
    assets = flags.tokenizer or (str(prepare_embedded().tokenizer) if small else LLAMA3_TOKENIZER)
    data: dict[str, Any] = {"dataset": dataset, "dataset_path": flags.dataset_path, "seed": seed}
    vocab_size = _vocabulary(assets)
    cross_entropy = CrossEntropyLoss.Config(global_vocab_size=vocab_size)
    return MaxPTrainer.Config(
        **shared_fields(size, settings, seed=seed, steps=steps, folder=folder),
        model_spec=model_spec(size, vocab_size, fuse_qkv=flags.fuse_qkv),
        hf_assets_path=assets,
        # The chunked loss saves memory where logits are large.
        loss=cross_entropy if size.on_corpus else ChunkedLossWrapper.Config(loss_fn=cross_entropy),
        dataloader=TextDataLoader.Config(**data),
        validator=HeldOutValidator.Config(
            **shared_validation(steps),
            dataloader=TextDataLoader.Config(**data, split="validation"),
        ),
        metrics=RunMetrics.Config(**shared_metrics(size)),
        activation_checkpoint=SelectiveAC.Config() if size.active_params >= 1e9 else None,
        compile=CompileConfig(enable=cpu.has_accelerator() and not size.on_corpus),
        parallelism=ParallelismConfig(spmd_backend=torch_compat.spmd_backend()),
    )


def complete(config: MaxPTrainer.Config) -> None:
    """Set what depends on other flags, once all flags are read.

    Raises:
        ValueError: there is no tokenizer at ``hf_assets_path``, or the images cannot be used.
    """
    if isinstance(find_scale(config.scale), Scale):
        _match_tokenizer(config)
    else:
        from train.image_config import match_data

        match_data(config)
    if config.maxp.measure_from is None:
        config.maxp.measure_from = config.lr_scheduler.warmup_steps
    if config.maxp.optimizer == "muon":
        assert config.model_spec is not None
        model = config.model_spec.model
        with torch.device("meta"):
            shapes = copy.deepcopy(model).build()
        config.optimizer = with_muon(
            config.optimizer,
            shapes,
            site_graph(model),
            lr=config.maxp.lr,
            adjust_lr_fn=config.maxp.adjust_lr_fn,
        )


def _match_tokenizer(config: MaxPTrainer.Config) -> None:
    """Give the model the vocabulary size of the tokenizer at ``hf_assets_path``.

    Raises:
        ValueError: there is no tokenizer at ``hf_assets_path``.
    """
    size = _vocabulary(config.hf_assets_path, required=True)
    assert config.model_spec is not None
    if size != config.model_spec.model.vocab_size:
        fused = bool(fused_blocks(config.model_spec.model))
        config.model_spec = model_spec(get_scale(config.scale), size, fuse_qkv=fused)


def _vocabulary(assets: str, *, required: bool = False) -> int:
    """Tokens of the tokenizer; LLaMA-3's number where the file is not downloaded yet."""
    file = Path(assets) / "tokenizer.json"
    if not file.is_file():
        if required:
            remedy = (
                "download LLaMA-3's with scripts/download_hf_assets.py, or pass --dataset "
                "embedded, which has its own"
            )
            if file.parent.name == TOKENIZER:  # as in a folder of prepared text
                prepared = file.parent.parent
                remedy = (
                    f"prepare the text with `python -m train.prepare --to {prepared}`, {remedy}"
                )
            raise ValueError(f"--tokenizer {assets}: no tokenizer.json there; {remedy}")
        return LLAMA3_VOCABULARY
    try:
        return int(Tokenizer.from_file(str(file)).get_vocab_size())
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(
            f"--tokenizer {assets}: tokenizer.json is corrupt ({error}); download it again"
        ) from None
