"""One run of the trial: a GPT on the bytes of the embedded corpus, with AdamW."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR

from maxp import PARAMETRIZATIONS, Parametrization, mark
from scripts.gpt_trial.model import GPT
from train.data.corpus import embedded_documents, split_documents


@dataclass(frozen=True)
class Recipe:
    """What all runs have in common."""

    steps: int = 150
    warmup: int = 15
    batch: int = 4
    sequence: int = 64
    base: int = 64
    """The width of the base."""
    held_out: int = 256
    """Number of held-out sequences."""
    solve_interval: int = 10
    """Of maxP: steps between measurements, which begin after the warm-up."""

    def factor(self, step: int) -> float:
        """Of the learning rate: linear warm-up, then half a cosine down to 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup)))


@dataclass(frozen=True)
class Arm:
    """A way to initialise the model and to set its learning rates.

    Attributes:
        title: in tables and figures.
        log2_lrs: the grid, the same at all widths.
        alignment: the preset.
        standard: the standard (a, b), and one learning rate for all weights.
        based: with a base; else exponents apply to the width itself.
        measured: call `Parametrization.step` in the loop.
    """

    title: str
    log2_lrs: range
    alignment: str = "full"
    standard: bool = False
    based: bool = True
    measured: bool = False


ARMS = {
    "standard": Arm("standard, one lr", range(-9, -4), standard=True),
    "mup": Arm("mup-full, base 64", range(-8, -4)),
    "mup-without-base": Arm("mup-full, no base", range(-4, 0), based=False),
    "mup-no": Arm("mup-no, base 64", range(-9, -4), alignment="no"),
    "maxP": Arm("maxP, base 64", range(-8, -4), measured=True),
}


class Run(NamedTuple):
    """What a run is known by."""

    arm: str
    width: int
    log2_lr: int
    seed: int


def build(run: Run, recipe: Recipe) -> tuple[GPT, Parametrization]:
    """The model with its weights drawn, and its parametrization.

    All arms draw the same normals from a seed, and at the base's width the same weights.
    """
    arm = ARMS[run.arm]
    with torch.device("meta"):
        base, delta = (GPT(w, sequence=recipe.sequence) for w in (recipe.base, 2 * recipe.base))
    model = GPT(run.width, sequence=recipe.sequence)
    plan = mark(model, base, delta=delta)
    plan.apply()
    ab = PARAMETRIZATIONS["standard" if arm.standard else "mup"]
    p = Parametrization(
        model,
        base=plan if arm.based else None,
        alignment=arm.alignment,
        ab_overrides=ab,
        c_overrides=dict.fromkeys(ab, 0.0) if arm.standard else None,
        sample_input=torch.zeros(1, recipe.sequence, dtype=torch.int64),
        lr_prefactor=2.0**run.log2_lr,
        warmup_steps=recipe.warmup,
        solve_interval=recipe.solve_interval,
        seed=run.seed,
    )
    return model, p


def train(run: Run, recipe: Recipe) -> float:
    """The held-out loss after training, in nats per byte; NaN or infinite if it diverged.

    The batches depend on the seed alone.
    """
    model, p = build(run, recipe)
    texts, held_out = corpus()
    optimizer = torch.optim.AdamW(p.param_groups, weight_decay=0.0)
    schedule = LambdaLR(optimizer, recipe.factor)
    if measured := ARMS[run.arm].measured:
        p.capture_initial()
    generator = torch.Generator().manual_seed(run.seed)
    for _ in range(recipe.steps):
        x = windows(texts, recipe.batch, recipe.sequence, generator)
        loss_of(model, x).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if measured:
            p.step(x[:, :-1], optimizer)
    x = windows(held_out, recipe.held_out, recipe.sequence, torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = [loss_of(model, part) for part in x.split(32)]
    return float(torch.stack(losses).mean())


def loss_of(model: GPT, x: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())


def windows(data: torch.Tensor, count: int, sequence: int, generator: Any) -> torch.Tensor:
    """(count, sequence + 1) bytes from random places."""
    starts = torch.randint(len(data) - sequence, (count, 1), generator=generator)
    return data[starts + torch.arange(sequence + 1)].long()


@cache
def corpus() -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes of the embedded corpus's training and held-out texts."""
    splits = split_documents(embedded_documents())
    texts = ("\n".join(document.text for document in split).encode() for split in splits)
    train_bytes, held_out = (torch.frombuffer(bytearray(t), dtype=torch.uint8) for t in texts)
    return train_bytes, held_out
