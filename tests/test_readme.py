"""What the README shows can be done as it is written."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_code_runs(code: str) -> None:
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["p"].steps == 50  # type: ignore[attr-defined]


def test_scripts_that_are_named_exist() -> None:
    named = re.findall(r"bash (scripts/\w+\.sh)|python -m ([\w.]+)", "\n".join(blocks("bash")))
    files = {script or module.replace(".", "/") for script, module in named}
    assert {"scripts/run_debug.sh", "scripts/run_tests.sh", "train"} <= files
    for file in files:
        assert any((ROOT / f"{file}{end}").exists() for end in ("", ".py", "/__main__.py"))


def test_links_to_files_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_shell_scripts_parse() -> None:
    for script in [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci/run"]:
        subprocess.run(["bash", "-n", str(script)], check=True)
