"""Names of runs; no torch here."""


def run_name(scale: str, method: str, lr: float, seed: int) -> str:
    """``s3_maxP_lr1e-02_seed1``; an lr of more digits keeps them."""
    short = f"{lr:.0e}"
    return f"{scale}_{method}_lr{short if float(short) == lr else lr}_seed{seed}"
