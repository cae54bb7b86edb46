"""The command line of a run: its own flags, torchtitan's way, and every flag of torchtitan."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from torchtitan.config import ConfigManager

from train.checks import check, global_batch_size
from train.config import make_config, match_tokenizer
from train.run.provenance import git_commit, versions
from train.trainer import MaxPTrainer

PROG = "python -m train"

# torchtitan's own rules, as for lists: A,B,C.
_REGISTRY = tyro.constructors.ConstructorRegistry()
ConfigManager.register_tyro_rules(_REGISTRY)
EPILOGUE = """Every flag of torchtitan and of --maxp can follow (--training.local_batch_size 4,
--maxp.solve_interval 50): list them with --scale NAME --help-all. torchtitan's own way works too:
--module configs.llama3 --config s1_mup_full."""


@dataclass
class Flags:
    """Train LLaMA-3 with per-layer learning rates."""

    scale: str
    """debug, s1 to s5, w256 to w4096 (width alone), or cpu64 to cpu512 (the same on a CPU)."""

    method: str = "maxP"
    """maxP, mup-full, mup-no, maxP-frozen or sp."""

    lr: float = 1e-2
    """Learning rate that n^-c multiplies at each layer."""

    seed: int = 1
    """Seed of the initial weights and of the order of the data."""

    steps: int | None = None
    """Steps to train; by default 20 tokens a non-embedding parameter."""

    output_dir: str | None = None
    """The run's folder; by default runs/SCALE_METHOD_lrLR_seedSEED."""

    dataset: str | None = None
    """embedded, local, fineweb-edu, fineweb-edu-100bt, fineweb-edu-10bt or c4."""

    dataset_path: str | None = None
    """Where local text, or a copy of a hub dataset, lies."""

    tokenizer: str | None = None
    """Folder with a tokenizer.json; by default the embedded corpus's own, or LLaMA-3's."""

    alignment_table: str | None = None
    """File made by `python -m train.alignment_table`, for method maxP-frozen."""


def parse(arguments: Sequence[str] | None = None) -> MaxPTrainer.Config:
    """The configuration that a command line asks for.

    Raises:
        ValueError: one line that names the flag and the remedy.
        SystemExit: help was asked for, or a flag does not exist or cannot be read.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if any(flag.split("=")[0] == "--module" for flag in given):
        try:
            config = ConfigManager().parse_args(given)
        except ImportError as error:
            raise ValueError(f"--module: {error}".splitlines()[0]) from error
        if not isinstance(config, MaxPTrainer.Config):
            raise ValueError("--module: gives no configuration of this trainer; use configs.llama3")
    else:
        flags, rest = tyro.cli(
            Flags, args=given, prog=PROG, description=EPILOGUE, return_unknown_args=True
        )
        default = make_config(**asdict(flags))
        config = tyro.cli(
            MaxPTrainer.Config,
            args=["--help" if flag == "--help-all" else flag for flag in rest],
            default=default,
            prog=PROG,
            registry=_REGISTRY,
        )
    match_tokenizer(config)
    check(config)
    return config


def record(config: MaxPTrainer.Config) -> dict[str, Any]:
    """What ``config.json`` keeps: the experiment's coordinates first, then every setting."""
    settings = _plain(config.to_dict())
    # With as many sequences a step, a run is the same experiment on any number of processes.
    settings["training"]["global_batch_size"] = global_batch_size(config)
    return {
        "scale": config.scale,
        "method": config.maxp.method,
        "lr": config.maxp.lr,
        "seed": config.debug.seed,
        "steps": config.training.steps,
        "tokenizer_sha256": _digest(Path(config.hf_assets_path) / "tokenizer.json"),
        **settings,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Without the addresses of functions, which differ from process to process."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k != "param_init"}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
