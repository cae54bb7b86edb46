"""Which run it is: the hash of what a configuration computes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from run_cases import CONFIG

from train.run.folder import RunFolder, load_run
from train.run.identity import identity


def test_identity_is_the_hash_of_canonical_json() -> None:
    canonical = b'{"lr":0.003,"model":{"dim":64,"scale":"s1"}}'
    config = {"model": {"scale": "s1", "dim": 64}, "lr": 3e-3}
    assert identity(config) == hashlib.sha256(canonical).hexdigest()[:16]


@pytest.mark.parametrize("key", ["output_dir", "dump_folder", "versions", "git_commit", "created"])
def test_identity_ignores_where_and_when_a_run_ran(key: str) -> None:
    assert identity({**CONFIG, key: "a"}) == identity({**CONFIG, key: "b"}) == identity(CONFIG)
    assert identity({"trainer": {key: "a", "lr": 1}}) == identity({"trainer": {"lr": 1}})


@pytest.mark.parametrize("key", sorted(CONFIG))
def test_identity_changes_with_every_other_key(key: str) -> None:
    assert identity({**CONFIG, key: "other"}) != identity(CONFIG)


def test_identity_survives_the_trip_through_config_json(tmp_path: Path) -> None:
    config = {**CONFIG, "data": Path("a/b"), "betas": (0.9, 0.95), "clip": 1.0, "top": float("inf")}
    run = RunFolder(tmp_path / "run")
    run.claim(config)
    stored = json.loads((run.path / "config.json").read_text())
    assert stored["identity"] == identity(config) == identity(load_run(run.path).config)
    assert run.claim(config) == "resumable"


def test_identity_does_not_tell_an_integer_from_the_equal_float() -> None:
    assert identity({"lr": 1}) == identity({"lr": 1.0}) != identity({"lr": 1.5})


def test_identity_refuses_a_value_whose_text_may_change_from_run_to_run() -> None:
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        identity({"model": object()})
