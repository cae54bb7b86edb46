"""The coordinate check of the parametrized models over widths, as a table and a figure.

    python -m scripts.coord_check --method mup-full --widths 64 128 256 512

It makes a few updates on one batch at each width, with the method's learning rates. Then it fits
the slopes of log rms against log width, of each site's output at init and of the output's change.
The output of ``inner_attention`` is that of attention: the values, mixed by softmax(QK^T).
"""

import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn import functional as F

from maxp import Parametrization
from maxp.diagnose.check import diagnose_axis
from maxp.diagnose.report import plot_axis, print_axis
from maxp.diagnose.slopes import SiteStats
from maxp.exponents import ADJUST_LR_FNS, AdjustLrFn
from scripts.command import check_file, run_command, write_json
from scripts.coord_derived import HeadSplit, derived_slopes, footnotes, with_derived
from scripts.image_check import MODELS, measure_images, method_arguments
from train import cpu
from train.alignment_table import kind
from train.data.corpus import prepare_embedded
from train.method.methods import METHODS, Method, get_method
from train.method.settings import OptimizerName
from train.model.decoder_scales import DECODERS
from train.model.decoders import model_config, site_graph, without_masks
from train.model.scales import SCALES, VOCAB_SIZE, Scale, get_scale
from train.run.identity import ADJUST_LR_FN

FAMILIES = ("cpu", "w", "qwen3-cpu", "qwen3-moe-cpu", "deepseek-cpu", "gptoss-cpu")
# Methods with a fixed c: a few steps after init there is no alignment to follow.
CHECKED = tuple(name for name, m in METHODS.items() if not (m.follows or m.needs_table))


def optional_file(default: str) -> Any:
    """How `--help` shows a file that is optional."""
    return tyro.conf.arg(metavar="FILE", help_behavior_hint=f"(default: {default})")


@dataclass
class Options:
    """Check whether anything in a model grows with width, at init and after a few updates.

    For example: python -m scripts.coord_check --widths 64 128 256 --method mup-full
    """

    model: str = "llama3"
    """llama3; or vit or mlp, which classify scikit-learn's digits."""

    method: str = "mup-full"
    """mup-full, mup-no or sp."""

    family: str = "cpu"
    """cpu (scales cpu64 to cpu512) or w (w256 to w4096); of other decoders qwen3-cpu,
    qwen3-moe-cpu, deepseek-cpu or gptoss-cpu. Only the width differs within a family."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    """At least two widths of that family. Those of a ViT are multiples of 16."""

    steps: int = 3
    """Updates before the change is measured."""

    seeds: int = 4
    """Models per width, at least 2. Their spread gives the standard errors."""

    lr: float = 1e-2
    """Learning rate, which n^-c multiplies at each site."""

    optimizer: str = "adamw"
    """adamw; or muon, which is Muon for the matrices of hidden layers and AdamW for all else."""

    adjust_lr_fn: str = ADJUST_LR_FN
    """Muon's scale: match_rms_adamw or original. With --method sp, torch's own rule alone."""

    sequences: int = 4
    """Sequences per batch, from the embedded corpus, or images. Each seed draws others."""

    seq_len: int = 32
    """Tokens per sequence."""

    png: Annotated[Path | None, optional_file("./coord_check_METHOD.png")] = None
    """File to write the figure to."""

    json: Annotated[Path | None, optional_file("none")] = None
    """File to write every slope and rms to."""

    all_sites: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Show every site. By default, only the worst layer of each kind is shown."""

    @property
    def muon(self) -> AdjustLrFn | None:
        """Muon's scale; None where AdamW trains everything."""
        return cast(AdjustLrFn, self.adjust_lr_fn) if self.optimizer == "muon" else None


def check(options: Options) -> None:
    """Check the options before anything runs.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    get_method(options.method)
    if options.method not in CHECKED:
        choices = ", ".join(CHECKED)
        raise ValueError(f"--method {options.method}: has no fixed c; choose one of {choices}")
    if options.family not in FAMILIES:
        raise ValueError(f"--family {options.family}: choose one of {', '.join(FAMILIES)}")
    if options.model not in ("llama3", *MODELS):
        raise ValueError(f"--model {options.model}: choose one of llama3, {', '.join(MODELS)}")
    scales = (*SCALES.values(), *DECODERS.values())
    known = [s.dim for s in scales if s.name == f"{options.family}{s.dim}"]
    for width in options.widths:
        if options.model != "llama3" and (width < 16 or width % 16):
            raise ValueError(f"--widths {width}: --model {options.model} has multiples of 16")
        if options.model == "llama3" and width not in known:
            choices = ", ".join(map(str, known))
            raise ValueError(f"--widths {width}: --family {options.family} has {choices}")
    if len(set(options.widths)) < 2:
        raise ValueError(f"--widths {' '.join(map(str, options.widths))}: give two different ones")
    for name, least in (("steps", 1), ("seeds", 2), ("sequences", 1), ("seq_len", 2)):
        if (value := getattr(options, name)) < least:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    if not (options.lr > 0 and math.isfinite(options.lr)):
        raise ValueError(f"--lr {options.lr}: must be positive")
    if options.optimizer not in get_args(OptimizerName):
        raise ValueError(f"--optimizer {options.optimizer}: must be adamw or muon")
    if options.adjust_lr_fn not in ADJUST_LR_FNS:
        choices = ", ".join(ADJUST_LR_FNS)
        raise ValueError(f"--adjust-lr-fn {options.adjust_lr_fn}: choose one of {choices}")
    if options.optimizer != "muon" and options.adjust_lr_fn != ADJUST_LR_FN:
        raise ValueError(
            f"--adjust-lr-fn {options.adjust_lr_fn}: only Muon has it; pass --optimizer muon"
        )
    check_file("png", options.png)
    check_file("json", options.json)


def device() -> torch.device:
    """The accelerator, if there is one."""
    accelerator = torch.accelerator.current_accelerator() if cpu.has_accelerator() else None
    return accelerator or torch.device("cpu")


def build_model(
    scale: Scale,
    method: Method,
    lr: float,
    seq_len: int,
    muon: AdjustLrFn | None = None,
    **arguments: Any,
) -> tuple[Any, Parametrization]:
    """The model of a scale, parametrized as in training; drawn from torch's global generator.

    Args:
        muon: the scale of Muon, if it trains the hidden matrices.
        **arguments: of `maxp.Parametrization`, instead of the method's.
    """
    # The same attention on every device.
    config = without_masks(model_config(scale, VOCAB_SIZE), seq_len)
    with torch.device("meta"):
        model = config.build()
    model.to_empty(device=device())
    with torch.no_grad():
        model.init_states(buffer_device=device())
    parametrization = Parametrization(
        model,
        **{**method_arguments(method, lr, muon), **arguments},
        sample_input=site_graph(config),
    )
    return model, parametrization


def draw_batch(tokens: np.ndarray, sequences: int, seq_len: int) -> torch.Tensor:
    """Random windows of the corpus: int64, (sequences, seq_len)."""
    starts = torch.randint(len(tokens) - seq_len + 1, (sequences,)).numpy()
    windows = tokens[starts[:, None] + np.arange(seq_len)]
    return torch.from_numpy(windows.astype(np.int64)).to(device())


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of each token given those before it; logits: (batch, tokens, words)."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def worst_by_kind(stats: Mapping[str, SiteStats]) -> list[str]:
    """The site of each kind whose slopes are furthest from the wanted ones."""
    worst: dict[str, tuple[float, str]] = {}
    for name, site in stats.items():
        off = max(_distance(s.mean, s.wanted) for s in (site.init, site.change))
        if kind(name) not in worst or off > worst[kind(name)][0]:
            worst[kind(name)] = (off, name)
    return [name for _, name in worst.values()]


def _distance(mean: float, wanted: float) -> float:
    if mean == -math.inf:  # zero throughout: no slope
        return 0.0
    return math.inf if math.isnan(mean) else abs(mean - wanted)


def run(options: Options) -> None:
    """Measure, print the table and its notes, and write the files."""
    if options.model in MODELS:
        return run_images(options)
    method = get_method(options.method)
    tokens = prepare_embedded().train.tokens
    widths = sorted(set(options.widths))
    head = HeadSplit()
    derived: dict[str, tuple[float, float]] = {}

    def make_model(width: int) -> tuple[nn.Module, Any]:
        scale = get_scale(f"{options.family}{width}")
        model, parametrization = build_model(
            scale, method, options.lr, options.seq_len, options.muon
        )
        head.watch(width, model.lm_head)
        derived.update(
            derived_slopes(parametrization.graph, method.ab, parametrization.c, options.muon)
        )
        return model, parametrization.param_groups

    _, _, measured = diagnose_axis(
        make_model,
        lambda width: draw_batch(tokens, options.sequences, options.seq_len),
        widths,
        steps=options.steps,
        seeds=options.seeds,
        loss_fn=next_token_loss,
        optimizer="muon" if options.muon else "adam",
    )
    # The biases of experts, (experts, out), look like matrices, and are no sites.
    stats = {n: with_derived(s, *derived[n]) for n, s in measured.items() if n in derived}
    _report(options, stats, widths, head)


def run_images(options: Options) -> None:
    """The same for an image classifier."""
    widths, images = sorted(set(options.widths)), options.sequences
    stats = measure_images(
        options.model, get_method(options.method), widths, device(), images=images,
        steps=options.steps, seeds=options.seeds, lr=options.lr, muon=options.muon,
    )  # fmt: skip
    _write(options, stats, widths, f"{images} images")


def _report(
    options: Options, stats: Mapping[str, SiteStats], widths: Sequence[int], head: HeadSplit
) -> None:
    _write(options, stats, widths, f"{options.sequences} x {options.seq_len} tokens", head)


def _write(
    options: Options,
    stats: Mapping[str, SiteStats],
    widths: Sequence[int],
    batch: str,
    head: HeadSplit | None = None,
) -> None:
    rows = list(stats) if options.all_sites else worst_by_kind(stats)
    affected = [name for name in rows if stats[name].affected]
    updates = f"{options.steps} step{'s' * (options.steps > 1)}"
    optimizer = f"muon ({options.muon}), " if options.muon else ""
    title = f"{options.method}, {optimizer}lr {options.lr:g}, {updates} on {batch}"
    print_axis(title, rows, affected, stats, widths)
    size = options.sequences * options.seq_len
    notes = (
        footnotes(stats, head, size, every=options.all_sites, muon=options.muon is not None)
        if head
        else ()
    )
    for note in notes:
        print(textwrap.fill(note, 100, initial_indent="- ", subsequent_indent="  "))
    png = options.png or Path(f"coord_check_{options.method}.png")
    plot_axis(title, rows, affected, stats, widths, filename=png)
    print(f"wrote {png}")
    if options.json is not None:
        sites = {name: site.as_dict() for name, site in stats.items()}
        write_json(options.json, options, {"sites": sites})


def main() -> int:
    return run_command(Options, check, run, "python -m scripts.coord_check")


if __name__ == "__main__":
    sys.exit(main())
