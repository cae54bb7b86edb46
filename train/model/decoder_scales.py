"""The scales of torchtitan's other decoders: debug sizes, ladders for CPUs, and published sizes.

Along a ladder only the width differs: heads, experts and latents keep their number of entries per
unit of width, and the number of experts is fixed. The debug sizes are as small as the `cpu` scales.
"""

from dataclasses import replace

from train.model.scale import Experts, Latent, Scale


def _qwen3(name: str, dim: int) -> Scale:
    heads = dim // 16
    return Scale(
        name, dim, 2, heads, heads // 2, dim * 7 // 2, family="qwen3", head_size=16, tied=True
    ).on_cpu()


def _qwen3_moe(name: str, dim: int) -> Scale:
    experts = Experts(number=4, chosen=2, width=dim)
    return replace(_qwen3(name, dim), tied=False, experts=experts)


def _deepseek(name: str, dim: int) -> Scale:
    """A first block without experts, then one with them."""
    heads = dim // 16
    experts = Experts(
        number=4, chosen=2, width=dim, shared=1, dense_layers=1, sigmoid=True, route_scale=2.5
    )
    latent = Latent(kv_rank=dim // 2, q_rank=dim // 2, nope=16, rope=8, value=16)
    return Scale(
        name, dim, 2, heads, heads, dim * 7 // 2, family="deepseek", experts=experts, latent=latent
    ).on_cpu()


def _gptoss(name: str, dim: int) -> Scale:
    """One block with a sliding window, and one without."""
    heads = dim // 16
    experts = Experts(number=4, chosen=2, width=dim)
    return Scale(
        name, dim, 2, heads, heads // 2, 0, family="gptoss", head_size=16, experts=experts
    ).on_cpu()


_WIDTHS = (64, 128, 256)
_LADDERS = {
    "qwen3": _qwen3,
    "qwen3-moe": _qwen3_moe,
    "deepseek": _deepseek,
    "gptoss": _gptoss,
}


def _qwen3_size(
    name: str,
    dim: int,
    n_layers: int,
    n_heads: int,
    ffn: int,
    *,
    kv: int = 8,
    tied: bool = False,
    experts: Experts | None = None,
    sequences: int = 2,
    theta: float = 1e6,
) -> Scale:
    return Scale(
        f"qwen3-{name}", dim, n_layers, n_heads, kv, ffn, family="qwen3", head_size=128,
        tied=tied, experts=experts, local_batch_size=sequences, rope_theta=theta,
    )  # fmt: skip


def _deepseek_size(
    name: str,
    dim: int,
    n_layers: int,
    n_heads: int,
    ffn: int,
    experts: Experts,
    *,
    q_rank: int = 1536,
    mscale: float = 1.0,
) -> Scale:
    return Scale(
        f"deepseek-{name}", dim, n_layers, n_heads, n_heads, ffn, family="deepseek",
        experts=experts, latent=Latent(512, q_rank, mscale=mscale), local_batch_size=1,
    )  # fmt: skip


def _gptoss_size(name: str, n_layers: int, number: int) -> Scale:
    return Scale(
        f"gptoss-{name}", 2880, n_layers, 64, 8, 0, family="gptoss", head_size=64,
        experts=Experts(number, 4, 2880), local_batch_size=1,
    )  # fmt: skip


DECODERS: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        *(ladder(f"{name}-debug", 128) for name, ladder in _LADDERS.items()),
        *(ladder(f"{name}-cpu{dim}", dim) for name, ladder in _LADDERS.items() for dim in _WIDTHS),
        *(ladder(f"{name}-debug-base", 32) for name, ladder in _LADDERS.items()),
        _qwen3_size("0.6b", 1024, 28, 16, 3072, tied=True, sequences=4),
        _qwen3_size("1.7b", 2048, 28, 16, 6144, tied=True),
        _qwen3_size("4b", 2560, 36, 32, 9728, tied=True),
        _qwen3_size("8b", 4096, 36, 32, 12288),
        _qwen3_size("14b", 5120, 40, 40, 17408),
        _qwen3_size("32b", 5120, 64, 64, 25600, sequences=1),
        _qwen3_size("30b-a3b", 2048, 48, 32, 0, kv=4, experts=Experts(128, 8, 768)),
        _qwen3_size("235b-a22b", 4096, 94, 64, 0, kv=4, experts=Experts(128, 8, 1536), theta=5e6),
        _deepseek_size(
            "16b", 2048, 27, 16, 10944, Experts(64, 6, 1408, 2, 1), q_rank=0, mscale=0.7
        ),
        _deepseek_size("236b", 5120, 60, 128, 12288, Experts(160, 6, 1536, 2, 1, 8, 3, False, 16)),
        _deepseek_size("671b", 7168, 61, 128, 18432, Experts(256, 8, 2048, 1, 3, 8, 4, True, 2.5)),
        _gptoss_size("20b", 24, 32),
        _gptoss_size("120b", 36, 128),
    )
}

# The base of each ladder, by the part of the names before the number, or of a scale by its name.
DECODER_BASES: dict[str, str] = {
    **{f"{name}-debug": f"{name}-debug-base" for name in _LADDERS},
    **{f"{name}-cpu": f"{name}-cpu{_WIDTHS[0]}" for name in _LADDERS},
    **{f"qwen3-{size}": "qwen3-0.6b" for size in ("0.6b", "1.7b", "4b")},
    **{f"qwen3-{size}": "qwen3-8b" for size in ("8b", "14b", "32b")},
    **{f"qwen3-{size}": "qwen3-30b-a3b" for size in ("30b-a3b", "235b-a22b")},
    "deepseek-16b": "deepseek-16b",
    **{f"deepseek-{size}": "deepseek-236b" for size in ("236b", "671b")},
    **{f"gptoss-{size}": "gptoss-20b" for size in ("20b", "120b")},
}
