"""The identity and the name of a run, independent of machine, date and number of devices."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from train.run.files import to_json

NO_BASE = "none"
"""Value of ``maxp.base_scale`` for exponents that act on widths themselves; absent from runs of
earlier versions, which all had none."""

ADAMW: Literal["adamw"] = "adamw"
"""Value of ``maxp.optimizer`` that is not written, as it was not before there was another one."""

ADJUST_LR_FN: Literal["match_rms_adamw"] = "match_rms_adamw"
"""Value of ``maxp.adjust_lr_fn`` that is not written, as it was not before it could be set."""

TABLE_DIGEST = "alignment_table_sha256"
"""Key of the digest of a run's alignment table."""

HELD_OUT = "held_out_sequences"
"""Key of the sequences that a run with ``validator.steps`` validates on, which depend on the batch
of a process and on the number of processes."""

DATA_DIGEST = "dataset_sha256"
"""Key of the digest of local text or of an image folder, whose files may be written again."""

LATER = frozenset(
    {
        TABLE_DIGEST,
        f"validator.{HELD_OUT}",
        f"dataloader.{DATA_DIGEST}",
        f"validator.dataloader.{DATA_DIGEST}",
    }
)
"""Keys that earlier versions did not write: they do not keep such a run from being resumed, and
tables take a run without one for a run with the only value that the others have."""

NOT_IDENTITY = frozenset(
    {
        # where, when, with what
        "output_dir", "dump_folder", "hf_assets_path", "versions", "git_commit", "created",
        # on how many devices, and how the work is spread over them
        "parallelism", "local_batch_size", "comm", "compile", "activation_checkpoint",
        "enable_cpu_offload", "disable_cuda_graphs", "gc_freq",
        # what is written about it, and how often
        "metrics", "profiler", "interval", "keep_latest_k", "async_mode", "load_step",
    }
)  # fmt: skip
"""Keys, at any depth, that do not define the experiment: a run resumes with other values.

A dotted key, ``training.local_batch_size``, counts as its parts.
"""


def identity(config: Mapping[str, Any]) -> str:
    """Identity of an experiment: 16 hex digits of the SHA-256 of its canonical JSON.

    The order of keys and the keys in `NOT_IDENTITY` do not matter.

    Raises:
        TypeError: a value has no JSON form.
    """
    return hashlib.sha256(_canonical(_defining(config)).encode()).hexdigest()[:16]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The defining keys whose values differ, as "a.b: 1 there, 2 here"."""
    ours, theirs = _leaves(_defining(here)), _leaves(_defining(there))
    return [
        f"{key}: {theirs.get(key, _unwritten(key))} there, {ours.get(key, _unwritten(key))} here"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and (key in theirs or key not in LATER)
    ]


def run_name(scale: str, method: str, lr: float, seed: int, optimizer: str = ADAMW) -> str:
    """Name of a run, as ``s3_maxP_lr1e-02_seed1``; an lr with more digits keeps them all.

    It ends with the optimizer if that is not AdamW.
    """
    short = f"{lr:.0e}"
    end = "" if optimizer == ADAMW else f"_{optimizer}"
    return f"{scale}_{method}_lr{short if float(short) == lr else lr}_seed{seed}{end}"


def _unwritten(key: str) -> str:
    # A fixed probe, AdamW and Muon's default scale are not written, as they were not before there
    # was another one.
    unwritten = {
        "maxp.probe": '"fixed"',
        "maxp.optimizer": f'"{ADAMW}"',
        "maxp.adjust_lr_fn": f'"{ADJUST_LR_FN}"',
    }
    return unwritten.get(key, "absent")


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> canonical JSON of every value that is not itself a non-empty object."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: _canonical(value)}
    leaves: dict[str, str] = {}
    for key, item in value.items():
        leaves |= _leaves(item, f"{prefix}.{key}" if prefix else key)
    return leaves


def _defining(value: Any) -> Any:
    """``value`` without `NOT_IDENTITY`, normalised so that equal values have equal JSON."""
    if isinstance(value, Mapping):
        return {
            str(key): _defining(item)
            for key, item in value.items()
            if NOT_IDENTITY.isdisjoint(str(key).split("."))
        }
    if isinstance(value, list | tuple):
        return [_defining(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # lr 1 and lr 1.0 are one experiment
    return value


def _canonical(value: Any) -> str:
    return to_json(value, sort_keys=True, separators=(",", ":"))
