"""Export a run's checkpoint as a model of transformers or timm, with its multipliers folded in.

    python -m train.export RUN --to DIR

A site computes ``n^-a W z``. The models of transformers have no multipliers, so ``n^-a W`` is
written. QK^T has no weight, and transformers scales it by 1/sqrt(head_dim), so the queries take the
rest of its multiplier. What timm reads is in `train.image_export`.
"""

import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
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

from maxp import Parametrization
from maxp.module import bias_of, find_sites
from train.checkpoint_files import find_checkpoint
from train.method.base import base_arguments
from train.method.methods import get_method
from train.method.settings import read_settings
from train.model.decoders import model_config
from train.model.experts import ExpertSite
from train.model.hf_config import hf_config as hf_config
from train.model.hf_config import lacks_load_balancing
from train.model.image_scales import ImageScale
from train.model.scale import Family
from train.model.scales import find_scale, get_scale
from train.model.specs import PARTS
from train.run.folder import RunFolderError, load_run

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
)
"""Tokenizer files to copy; only the first is required."""


def multipliers(model: nn.Module) -> dict[str, float]:
    """By parameter name, the factors that fold the multipliers of a decoder into its weights.

    Args:
        model: built from `train.model.decoders.model_config`, on any device, with its multipliers
            set by `maxp.Parametrization`.
    """
    names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
    factors: dict[str, float] = {}
    sites = find_sites(model)
    for name, site in sites.items():
        if site.weight is None:
            continue
        factors[name if isinstance(site, ExpertSite) else f"{name}.weight"] = site.scale
        if (bias := bias_of(site)) is not None:
            factors[names[id(bias)]] = site.scale
    for name, site in sites.items():
        if site.weight is None:
            attention = name.rpartition(".")[0]
            for query in _queries(attention, names.values()):
                factors[query] = factors.get(query, 1.0) * site.scale * site.width_dim**0.5
    return factors


def _queries(attention: str, names: Collection[str]) -> list[str]:
    """The parameters that the size of the queries is proportional to."""
    gain = f"{attention}.q_norm.weight"
    if f"{attention}.wq_b.weight" in names:  # there q_norm is that of the latent
        return [f"{attention}.wq_b.weight"]
    if gain in names:
        return [gain]
    layers = (f"{attention}.qkv_linear.wq", f"{attention}.wq")
    both = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    return [name for name in both if name in names]


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
        source = _recorded_classifier(record) if images else _recorded_decoder(record)
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


def _recorded_decoder(record: Mapping[str, Any]) -> _Source:
    vocab_size, seq_len = record["model_spec"]["model"]["vocab_size"], record["training"]["seq_len"]
    scale = get_scale(record["scale"])
    config = model_config(scale, vocab_size)
    used = Path(record["hf_assets_path"])

    def check(tokenizer: Path | None) -> tuple[dict[str, Any], Path]:
        assets = tokenizer or used
        text = _read_tokenizer(assets, vocab_size)
        return hf_config(config, int(seq_len), text.bos_id, text.eos_id), assets

    return _Source(config, check, multipliers, partial(renamed, config, scale.family))


def renamed(
    config: Any, family: Family, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of a decoder by transformers' names, with an untied head.

    Args:
        config: of the model.
        family: of its scale.
        tensors: by torchtitan's names.
    """
    biases = [tensor for name, tensor in tensors.items() if name.endswith("expert_bias_E")]
    if lacks_load_balancing(config) and any(bool(bias.any()) for bias in biases):
        print(
            "note: transformers chooses experts without the bias that balances their load, so some "
            "tokens go to other experts than in training"
        )
    untied = replace(config, enable_weight_tying=False)
    return {**PARTS[family].adapter(untied, None).to_hf(dict(tensors)), **_gptoss(tensors)}


# torchtitan's adapter of GPT-OSS has the names of quantised experts, which hold no such weights.
_GPTOSS = {
    "mlp1_weight_EGD": ("gate_up_proj", True),
    "mlp1_bias_EG": ("gate_up_proj_bias", False),
    "mlp2_weight_EDF": ("down_proj", True),
    "mlp2_bias_ED": ("down_proj_bias", False),
}


def _gptoss(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The experts of GPT-OSS by transformers' names, (experts, in, out)."""
    renamed = {}
    for name, tensor in tensors.items():
        block, _, parameter = name.partition(".moe.routed_experts.inner_experts.")
        if parameter in _GPTOSS:
            own, transposed = _GPTOSS[parameter]
            renamed[f"model.{block}.mlp.experts.{own}"] = tensor.mT if transposed else tensor
    return renamed


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
