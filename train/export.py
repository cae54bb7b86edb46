"""Export a run's checkpoint as a model of transformers or timm, with its multipliers folded in.

    python -m train.export RUN --to DIR

A site computes ``n^-a W z``. Hugging Face's LLaMA has no multipliers, so ``n^-a W`` is written.
QK^T has no weight, and Hugging Face scales it by 1/sqrt(head_dim), so the query weights take the
rest of its multiplier. What timm reads is in `train.image_export`.
"""

import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed.checkpoint as dcp
import tyro
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.processors import Sequence, TemplateProcessing
from torch import nn
from torchtitan.components.tokenizer import HuggingFaceTokenizer
from torchtitan.models.llama3 import Llama3StateDictAdapter
from torchtitan.models.llama3.model import Llama3Model

from maxp import Parametrization
from maxp.module import find_sites
from train.checkpoint_files import find_checkpoint
from train.method.base import base_arguments
from train.method.methods import get_method
from train.method.settings import read_settings
from train.model.image_scales import ImageScale
from train.model.llama3 import model_config
from train.model.scales import find_scale, get_scale
from train.run.folder import RunFolderError, load_run

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
)
"""Tokenizer files to copy; only the first is required."""


def multipliers(model: nn.Module) -> dict[str, float]:
    """By parameter name, the factors that fold the multipliers of a LLaMA's sites into its weights.

    Args:
        model: built from `train.model.llama3.model_config`, on any device, with its multipliers set
            by `maxp.Parametrization`.
    """
    sites = find_sites(model)
    factors = {f"{name}.weight": s.scale for name, s in sites.items() if s.weight is not None}
    for name, site in sites.items():
        if site.weight is None:
            attention = name.rpartition(".")[0]
            factors[f"{attention}.qkv_linear.wq.weight"] *= site.scale * site.width_dim**0.5
    return factors


def hf_config(
    config: Llama3Model.Config, seq_len: int, bos: int | None, eos: int | None
) -> dict[str, Any]:
    """The ``config.json`` with which transformers' ``LlamaForCausalLM`` computes the same logits.

    Its keys are those of transformers 4, which version 5 reads as well.

    Args:
        config: of the model.
        seq_len: tokens per sequence in training, the longest input that the model knows.
        bos: id of the token that begins a text.
        eos: id of the token that ends a text.
    """
    attention, feed_forward = config.layers[0].attention, config.layers[0].feed_forward
    rope = attention.rope
    assert feed_forward is not None
    assert rope.scaling == "llama"
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": feed_forward.w1.out_features,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads or attention.n_heads,
        "head_dim": rope.dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": config.norm.eps,
        "rope_theta": float(rope.theta),
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": rope.scaling_factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
        },
        "max_position_embeddings": seq_len,
        "tie_word_embeddings": False,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "float32",
    }


def read_weights(
    checkpoint: Path, model: nn.Module, factors: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """The model's tensors of a checkpoint, whole, in float32, each multiplied by its factor.

    Args:
        checkpoint: a folder of `torch.distributed.checkpoint` in which
            `train.checkpoint_files.fault` finds nothing wrong for this model.
        model: gives names and shapes; may be on the meta device.
        factors: by parameter name; a parameter without a factor is read unchanged.
    """
    state = model.state_dict()
    weights = {name: torch.empty(t.shape, dtype=torch.float32) for name, t in state.items()}
    with warnings.catch_warnings():
        # torch warns that there is one process, even with no_dist=True.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(weights, checkpoint_id=checkpoint, no_dist=True)
    for name, factor in factors.items():
        weights[name].mul_(factor)
    return weights


def write_folder(
    to: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    tokenizer: Path | None = None,
) -> None:
    """Write a model's folder under a temporary name, then rename it to ``to``.

    Args:
        to: the folder; new, or empty.
        tensors: by the names that the library expects.
        config: the content of its config.json.
        tokenizer: a folder whose tokenizer is copied, and made to begin a text with BOS.

    Raises:
        ValueError: one line: ``to`` is not empty, or cannot be written.
    """
    _check_target(to)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as temporary:
            partial = Path(temporary) / to.name  # readable to others, unlike the temporary folder
            partial.mkdir()
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, partial / "model.safetensors", metadata={"format": "pt"})
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            if tokenizer is not None:
                _copy_tokenizer(tokenizer, partial, config["bos_token_id"])
            # safetensors makes its file private; other users of the folder need to read it.
            shutil.copymode(partial / "config.json", partial / "model.safetensors")
            os.replace(partial, to)  # fails where another process has filled it by now
    except OSError as error:
        raise ValueError(
            f"--to {to}: cannot be written ({error.strerror}); choose another folder"
        ) from error


def _copy_tokenizer(tokenizer: Path, folder: Path, bos: int | None) -> None:
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    _begin_with_bos(folder / "tokenizer.json", bos)


def _begin_with_bos(file: Path, bos: int | None) -> None:
    """Let a tokenizer begin a text with BOS, as training does; LLaMA-3's own already does."""
    tokenizer = Tokenizer.from_file(str(file))
    if bos is None or bos in tokenizer.encode("").ids:
        return
    token = tokenizer.id_to_token(bos)
    template = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, bos)]
    )
    before = tokenizer.post_processor
    tokenizer.post_processor = template if before is None else Sequence([before, template])
    tokenizer.save(str(file))


def _check_target(to: Path) -> None:
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise ValueError(f"--to {to}: exists and is not an empty folder; choose a new one")


def _read_tokenizer(folder: Path, vocab_size: int) -> HuggingFaceTokenizer:
    remedy = "pass --tokenizer FOLDER with the tokenizer of the run"
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"--tokenizer {folder}: no tokenizer.json there; {remedy}")
    try:
        tokenizer = HuggingFaceTokenizer(tokenizer_path=str(folder))
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(f"--tokenizer {folder}: corrupt ({error}); {remedy}") from error
    size = tokenizer.get_vocab_size()
    if size != vocab_size:
        raise ValueError(
            f"--tokenizer {folder}: {size} tokens, but the model has {vocab_size}; {remedy}"
        )
    return tokenizer


def export(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    to: Path,
    step: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the last)")] = None,
    tokenizer: Annotated[
        Path | None, tyro.conf.arg(help_behavior_hint="(default: the one that the run used)")
    ] = None,
) -> None:
    """Write a run's model for transformers or timm: weights, configuration and tokenizer.

    For example:

        python -m train.export runs/first --to exported/first

    The folder of a language model then loads with AutoModelForCausalLM.from_pretrained, and that of
    a ViT with timm.create_model("local-dir:FOLDER", pretrained=True).

    Args:
        run: The run's folder.
        to: Folder to write; it must be new or empty.
        step: Step of the checkpoint to export.
        tokenizer: Folder with the tokenizer.json of the run.
    """
    _check_target(to)
    record = load_run(run, metrics=False).config
    try:
        images = isinstance(find_scale(record["scale"]), ImageScale)
        source = _recorded_classifier(record) if images else _recorded_llama(record)
        settings, folder = read_settings(record["maxp"]), record["checkpoint"]["folder"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"RUN {run}: config.json is not from this version of train ({error}); export with the "
            "version that trained it"
        ) from error
    with torch.device("meta"):
        model = source.config.build()
    checkpoint = find_checkpoint(run, folder, model.state_dict(), step)
    written = source.check(tokenizer)
    print(f"reading {checkpoint}, writing {to} ...", flush=True)
    ab = get_method(settings.method).ab
    Parametrization(
        model, seed=0, ab_overrides=ab, **base_arguments(settings, record["scale"], source.config)
    )
    weights = read_weights(checkpoint, model, source.multipliers(model))
    tensors = source.rename(weights)
    write_folder(to, tensors, *written)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    print(f"wrote {to}: {len(tensors)} tensors, {numbers:,} parameters, {checkpoint.name} of {run}")


@dataclass(frozen=True)
class _Source:
    """What exporting needs of a kind of model.

    Attributes:
        config: of the model.
        check: checks ``--tokenizer``; returns the config.json to write and the tokenizer's folder.
        multipliers: the factors of a built model's tensors, by name.
        rename: tensors by the names of the library that reads them.
    """

    config: Any
    check: Callable[[Path | None], tuple[dict[str, Any], Path | None]]
    multipliers: Callable[[nn.Module], dict[str, float]]
    rename: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def _recorded_llama(record: Mapping[str, Any]) -> _Source:
    vocab_size, seq_len = record["model_spec"]["model"]["vocab_size"], record["training"]["seq_len"]
    config = model_config(get_scale(record["scale"]), vocab_size)
    used = Path(record["hf_assets_path"])

    def check(tokenizer: Path | None) -> tuple[dict[str, Any], Path]:
        assets = tokenizer or used
        text = _read_tokenizer(assets, vocab_size)
        return hf_config(config, int(seq_len), text.bos_id, text.eos_id), assets

    return _Source(config, check, multipliers, Llama3StateDictAdapter(config, None).to_hf)


def _recorded_classifier(record: Mapping[str, Any]) -> _Source:
    from train import image_export  # a run on text does not need what images need

    config = image_export.recorded_model(record)

    def check(tokenizer: Path | None) -> tuple[dict[str, Any], None]:
        if tokenizer is not None:
            raise ValueError(f"--tokenizer {tokenizer}: an image classifier has none; leave it out")
        return image_export.timm_config(config, record), None

    return _Source(config, check, image_export.multipliers, lambda tensors: tensors)


def main() -> None:
    try:
        tyro.cli(export, prog="python -m train.export", config=(tyro.conf.DisallowNone,))
    except (RunFolderError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
