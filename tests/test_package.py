"""Dependencies point one way, and the library alone is light."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def imported(package: str) -> dict[str, set[str]]:
    """Top-level packages that each module of a package imports, anywhere in it."""
    names_by_file = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
        names_by_file[str(file.relative_to(ROOT))] = names
    return names_by_file


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("maxp", {"train", "slurm", "configs", "scripts", "torchtitan"}),
        ("train", {"slurm", "configs", "scripts"}),
        ("configs", {"slurm", "scripts"}),
    ],
)
def test_a_package_imports_nothing_that_stands_above_it(package: str, never: set[str]) -> None:
    modules = imported(package)
    assert modules
    assert {file: names & never for file, names in modules.items() if names & never} == {}


def test_importing_maxp_loads_neither_torchtitan_nor_plotting() -> None:
    code = "import sys, maxp; print(*(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert "maxp" in loaded
    assert not {"torchtitan", "train", "matplotlib", "pandas"} & set(loaded)


def test_the_library_alone_requires_torch_and_the_solver_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^A-Za-z0-9_-]", need)[0] for need in project["dependencies"]}
    assert names == {"torch", "pulp", "highspy"}


def test_everything_pinned_is_a_requirement_or_comes_with_torchtitan() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        needs += extra
    required = {re.split(r"[^A-Za-z0-9_-]", need)[0].lower() for need in needs}
    of_torchtitan = {"torch_checkpointing", "torchdata", "spmd_types"}
    of_datasets = {"huggingface_hub", "pyarrow", "fsspec"}
    of_lightning = {"pytorch-lightning", "lightning-utilities", "torchmetrics"}
    of_scikit_learn = {"joblib", "threadpoolctl", "narwhals"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert pinned - required <= of_torchtitan | of_datasets | of_lightning | of_scikit_learn


def test_scripts_write_byte_code_where_the_environment_forbids_it(tmp_path: Path) -> None:
    """Many container images set the variable; then each process compiles all that it imports."""
    for name in ("constraints.txt", "pyproject.toml", "scripts/env.sh"):
        copy = tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text((ROOT / name).read_text())
    (tmp_path / ".venv").mkdir()
    made_from = '"$(cat constraints.txt pyproject.toml scripts/env.sh | cksum)"'
    code = f"echo {made_from} > .venv/.made-from; . scripts/env.sh; env"
    printed = subprocess.run(
        ["bash", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert "PYTHONDONTWRITEBYTECODE" not in printed.stdout
    assert str(tmp_path / ".venv/bin") in printed.stdout
