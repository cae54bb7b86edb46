"""The coordinate check of marked models of other libraries, at widths 64 to 512."""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from real_models import MODELS, VOCABULARY, output
from torch import nn

from maxp import Parametrization, mark

hf.logging.set_verbosity_error()

WIDTHS = (64, 128, 256, 512)
# Which experts a token takes depends on the seed and the width alike.
SEEDS = {**dict.fromkeys(MODELS, 3), "mixtral": 6}
# Fewer tokens than the smallest width: the random part of an update is then small at all of them.


def small_batch(kind: str) -> dict[str, torch.Tensor]:
    (name, batch), *_ = MODELS[kind].batch().items()
    if name == "input_ids":
        return {name: torch.randint(VOCABULARY, (1, 3))}
    few = batch[:1].clone()
    if kind == "timm convnext":  # which has 64 positions; those without an input stay near zero
        few[..., 4:, :] = few[..., :, 4:] = 0.0
    return {name: few}


def changes(kind: str, width: int, seed: int) -> dict[str, float]:
    """The rms of the change of each hidden site's output after two steps of Adam."""
    torch.manual_seed(seed)
    batch, base = small_batch(kind), MODELS[kind].make(WIDTHS[0])
    model = MODELS[kind].make(width)
    plan = mark(model, base, delta=MODELS[kind].make(2 * WIDTHS[0]))
    p = Parametrization(model, base=plan, sample_input=batch, lr_prefactor=1e-3)
    optimizer = torch.optim.AdamW(p.param_groups, weight_decay=0.0)
    outputs: dict[str, torch.Tensor] = {}
    for name, site in p.sites.items():
        if isinstance(site, nn.Module) and site.layer_type == "hidden":
            site.register_forward_hook(
                lambda _, args, out, name=name: outputs.__setitem__(name, out.detach().clone())
            )
    model.eval()
    logits = output(model, batch)
    before = dict(outputs)
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(logits.shape[-1], logits.shape[:-1], generator=generator)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(output(model, batch).flatten(0, -2), target.flatten()).backward()
        optimizer.step()
    output(model, batch)
    return {n: float((outputs[n] - before[n]).square().mean().sqrt()) for n in before}


def slope(logs: list[list[float]]) -> tuple[float, float]:
    """Of log values, (seeds, widths), against log width: its mean over seeds and standard error."""
    x = torch.tensor([math.log(width) for width in WIDTHS], dtype=torch.float64)
    x = x - x.mean()
    slopes = torch.tensor(logs, dtype=torch.float64) @ x / x.square().sum()
    return float(slopes.mean()), float(slopes.std() / len(slopes) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_hidden_changes_do_not_depend_on_the_width(kind: str) -> None:
    runs = [[changes(kind, width, seed) for width in WIDTHS] for seed in range(SEEDS[kind])]
    slopes = {
        name: slope([[math.log(run[name]) for run in seed] for seed in runs]) for name in runs[0][0]
    }
    assert slopes
    for name, (mean, error) in slopes.items():
        assert abs(mean) < max(0.05, 3 * error), (name, mean, error)
