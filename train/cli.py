"""The command line of a run: its own flags, then torchtitan's; or torchtitan's own command line."""

import hashlib
import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import tyro
from torchtitan.config import ConfigManager

from train.checks import check, data_parallel_ranks, global_batch_size
from train.config import Flags, complete, make_config
from train.data.loader import TextDataLoader
from train.run.identity import ADAMW, ADJUST_LR_FN, DATA_DIGEST, HELD_OUT, TABLE_DIGEST
from train.run.provenance import git_commit, versions
from train.trainer import MaxPTrainer

PROG = "python -m train"

# torchtitan's own rules, for example for lists: A,B,C.
_REGISTRY = tyro.constructors.ConstructorRegistry()
ConfigManager.register_tyro_rules(_REGISTRY)
# Own flag -> the settings that it is for.
_SETTINGS = {
    "method": ("maxp.method",),
    "lr": ("maxp.lr",),
    "optimizer": ("maxp.optimizer",),
    "seed": ("debug.seed", "dataloader.seed"),
    "steps": ("training.steps",),
    "output_dir": ("dump_folder",),
    "dataset": ("dataloader.dataset",),
    "dataset_path": ("dataloader.dataset_path",),
    "tokenizer": ("hf_assets_path",),
    "alignment_table": ("maxp.alignment_table",),
}
USAGE = """Train LLaMA-3, or an image classifier, with a learning rate for each layer. Examples:

    python -m train --scale debug --method maxP --lr 1e-1
    python -m train --scale s1 --method maxP --lr 1e-2 --output-dir runs/first
    torchrun --nproc-per-node 8 -m train --scale s3 --lr 1e-2
    python -m train --scale vit-s --lr 1e-3 --dataset folder --dataset-path IMAGES

With --check, a command prints what would run and stops before the first step.
The same command again resumes a run that was stopped. Every flag of torchtitan and of --maxp can
follow, such as --training.local_batch_size 4 or --maxp.solve_interval 50; list them with
--scale NAME --help-all. torchtitan's own command line works too: --module configs.llama3
--config s1_mup_full."""


def wants_check(arguments: Sequence[str] | None = None) -> bool:
    """Whether a command line asks to print what would run, and no more."""
    return "--check" in (sys.argv[1:] if arguments is None else arguments)


def parse(arguments: Sequence[str] | None = None) -> MaxPTrainer.Config:
    """The configuration that a command line asks for.

    Raises:
        ValueError: one line that names the flag and the remedy.
        SystemExit: help was asked for, or a flag does not exist or cannot be read.
    """
    try:
        return _parse(list(sys.argv[1:] if arguments is None else arguments))
    except ValueError as error:
        if len(str(error).splitlines()) < 2:
            raise
        raise ValueError(" ".join(str(error).splitlines())) from error  # a value has two lines


def _parse(given: list[str]) -> MaxPTrainer.Config:
    if any(flag.split("=")[0] == "--module" for flag in given):
        try:
            config = ConfigManager().parse_args([flag for flag in given if flag != "--check"])
        except ImportError as error:
            raise ValueError(f"--module: {error}".splitlines()[0]) from error
        if not isinstance(config, MaxPTrainer.Config):
            raise ValueError(
                "--module: not a configuration of this trainer; use configs.llama3, "
                "configs.decoders or configs.images"
            )
    else:
        flags, rest = tyro.cli(
            Flags,
            args=given,
            prog=PROG,
            description=USAGE,
            return_unknown_args=True,
            config=(tyro.conf.DisallowNone,),
        )
        default = make_config(flags)
        config = tyro.cli(
            MaxPTrainer.Config,
            args=["--help" if flag == "--help-all" else flag for flag in rest],
            default=default,
            prog=PROG,
            registry=_REGISTRY,
        )
        _check_agreement(given, flags, config)
        _check_held_out(config, default)
    complete(config)
    check(config)
    return config


def _check_agreement(given: list[str], flags: Flags, config: MaxPTrainer.Config) -> None:
    """Refuse an own flag whose setting a flag of torchtitan or of ``--maxp`` changed.

    Else it would have no effect, for example in every run of a sweep over it.
    """
    names = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in given}
    for name in _SETTINGS.keys() & names:
        asked = getattr(flags, name)
        for setting in _SETTINGS[name]:
            if (got := attrgetter(setting)(config)) != asked:
                raise ValueError(
                    f"--{name.replace('_', '-')} {asked}: --{setting} {got} says otherwise: "
                    "remove one of them"
                )


def _check_held_out(config: MaxPTrainer.Config, default: MaxPTrainer.Config) -> None:
    """Refuse other training text than validation text unless both flags were given."""
    ours, theirs = config.dataloader, config.validator.dataloader
    if not (isinstance(ours, TextDataLoader.Config) and isinstance(theirs, TextDataLoader.Config)):
        return
    was = getattr(default.dataloader, "dataset", None)
    if config.validator.enable and ours.dataset != was == theirs.dataset:
        raise ValueError(
            f"--dataloader.dataset {ours.dataset}: validation would stay on {was}; pass --dataset "
            f"{ours.dataset}, or --validator.dataloader.dataset as well"
        )


def record(config: MaxPTrainer.Config) -> dict[str, Any]:
    """The content of ``config.json``: the experiment's coordinates first, then every setting."""
    settings = _plain(config.to_dict())
    # With the same sequences per step, a run is the same experiment on any number of processes.
    settings["training"]["global_batch_size"] = global_batch_size(config)
    if config.validator.enable and config.validator.steps > 0:  # else --validator.sequences
        step = config.training.local_batch_size * data_parallel_ranks(config)
        settings["validator"][HELD_OUT] = config.validator.steps * step
    if digest := _data(config.dataloader):
        settings["dataloader"][DATA_DIGEST] = digest
    if config.validator.enable and (digest := _data(config.validator.dataloader)):
        settings["validator"]["dataloader"][DATA_DIGEST] = digest
    if config.maxp.probe == "fixed" or not config.maxp.measures:
        del settings["maxp"]["probe"]  # as in runs from before the flag existed
    if config.maxp.adjust_lr_fn == ADJUST_LR_FN:
        del settings["maxp"]["adjust_lr_fn"]
    if config.maxp.optimizer == ADAMW:
        del settings["maxp"]["optimizer"]
    else:  # so that runs of several lr have equal groups
        for group in settings["optimizer"]["param_groups"]:
            del group["optimizer_kwargs"]["lr"]
    return {
        "scale": config.scale,
        "method": config.maxp.method,
        "lr": config.maxp.lr,
        "seed": config.debug.seed,
        "steps": config.training.steps,
        **_tokenizer(config.hf_assets_path),
        **_table(config.maxp.alignment_table),
        **settings,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _data(data: Any) -> str | None:
    """The digest of local data, whose files may be written again."""
    digest = getattr(data, "digest", None)
    return digest() if digest else None


def _tokenizer(assets: str) -> dict[str, str]:
    """The digest of a run's tokenizer, if it has one: a run on images has none."""
    return {"tokenizer_sha256": _digest(Path(assets) / "tokenizer.json")} if assets else {}


def _table(path: str | None) -> dict[str, str]:
    """The digest of a run's alignment table, if it has one: the file may be written again."""
    return {} if path is None else {TABLE_DIGEST: _digest(Path(path))}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """``value`` without functions, whose addresses differ from process to process."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k != "param_init"}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
