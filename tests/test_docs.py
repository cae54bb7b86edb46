"""What the README and the documents show can be done as it is written, and links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from forked_python import forked_python

import maxp

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

# Stands before a block that a test cannot run, and says why.
SPARED = re.compile(r"<!-- not run by the tests: (.+) -->\n$")


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    spared: str
    output: str | None
    """Of the block of text that follows it directly."""


@cache
def blocks() -> tuple[Block, ...]:
    listed = []
    for page, name in zip(PAGES, NAMES, strict=True):
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
            before = text[: match.start()]
            spared = SPARED.search(before)
            line = before.count("\n") + 1
            output = re.match(
                r"\n*```text\n(.*?)^```$", text[match.end() :], re.DOTALL | re.MULTILINE
            )
            listed.append(
                Block(
                    name, line, match[1], match[2], spared[1] if spared else "",
                    output[1] if output else None,
                )
            )  # fmt: skip
    return tuple(listed)


def of(language: str) -> list[Block]:
    return [block for block in blocks() if block.language == language and not block.spared]


def anchors(page: Path) -> set[str]:
    """Of the page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


_NUMBER = re.compile(r"[-+]?\d+\.\d+(?:e-?\d+)?|[-+]?\d+e-?\d+")


def assert_same_output(printed: str, shown: str) -> None:
    """The same text, and the same numbers but for the last digits, which depend on the CPU."""
    assert _NUMBER.sub("#", printed).split() == _NUMBER.sub("#", shown).split(), printed
    numbers = [[float(word) for word in _NUMBER.findall(text)] for text in (printed, shown)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.002), printed


@pytest.mark.parametrize("page", sorted({block.page for block in of("python")}))
def test_python_code_runs_from_the_first_block_to_the_last_and_prints_what_the_page_shows(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in of("python"):
        if block.page == page:
            capsys.readouterr()
            exec(compile("\n" * block.line + block.text, page, "exec"), names)
            if block.output is not None:
                assert_same_output(capsys.readouterr().out, block.output)


def private_names(code: str) -> list[str]:
    """What code imports of maxp beyond its public names and its integrations."""
    names = []
    for node in ast.walk(ast.parse(code)):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            if module.split(".")[0] != "maxp" or module.startswith("maxp.integrations."):
                continue
            if module != "maxp":
                names.append(module)
            elif isinstance(node, ast.ImportFrom):
                names += [alias.name for alias in node.names if alias.name not in maxp.__all__]
    return names


def test_the_documents_import_public_names_only() -> None:
    code = [block for block in blocks() if block.language == "python"]
    assert [(b.page, b.line, names) for b in code if (names := private_names(b.text))] == []


@pytest.mark.parametrize(
    "code", ["from maxp.solver import Solution", "import maxp.graph", "from maxp import call_model"]
)
def test_a_private_name_is_noticed(code: str) -> None:
    assert private_names(code)


def test_every_public_name_has_a_topic() -> None:
    from scripts.api_topics import TOPICS

    assert sorted(name for topic in TOPICS for name in topic.names) == sorted(maxp.__all__)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as a new user has it, with the environment of the tests."""
    target = tmp_path_factory.mktemp("docs") / "maxp"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    environment = Path(sys.prefix)
    (target / ".venv").symlink_to(environment)
    return target


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A program that does what python does, sooner."""
    with forked_python(tmp_path_factory.mktemp("python")) as program:
        yield program


# Blocks with one of these take minutes.
LONG = ("torchrun", "scripts.coord_check")


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block,
            id=f"{block.page}:{block.line}",
            marks=pytest.mark.exhaustive if any(word in block.text for word in LONG) else (),
        )
        for block in of("bash")
    ],
)
def test_commands_run(block: Block, copy: Path, python: str, corpus_cache: Path) -> None:
    done = subprocess.run(
        # A function, since `activate` changes PATH.
        ["bash", "-euo", "pipefail", "-c", f'python() {{ "{python}" "$@"; }}\n{block.text}'],
        cwd=copy,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(copy),
            "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_python_of_these_commands_does_what_a_new_process_does(
    python: str, tmp_path: Path
) -> None:
    (tmp_path / "fails.py").write_text("import sys; print(input(), sys.argv[1:]); sys.exit(7)")
    words = [python, "-m", "fails", "a"]
    done = subprocess.run(words, cwd=tmp_path, input="typed\n", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "typed ['a']\n")


def started(block: Block) -> list[str]:
    """The scripts and modules that a block starts: scripts/x.sh, train.table."""
    names = r"(?<=bash )scripts/\w+\.sh|(?<=python )scripts/\w+\.py|(?<=python -m )[\w.]+"
    return re.findall(names, block.text)


COMMANDS = [block for block in blocks() if block.language == "bash"]


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: f"{block.page}:{block.line}")
def test_commands_parse_and_name_what_exists(block: Block) -> None:
    subprocess.run(["bash", "-n", "-c", block.text], check=True)
    for name in started(block):
        file = name if "/" in name else name.replace(".", "/")
        assert any((ROOT / f"{file}{end}").exists() for end in ("", ".py", "/__main__.py")), file


def test_every_block_says_its_language() -> None:
    assert {block.language for block in blocks()} <= {"bash", "python", "text", "toml", "json"}


def test_what_a_spared_block_starts_is_tested_elsewhere() -> None:
    texts = [file.read_text() for file in Path(__file__).parent.glob("test_*.py")]
    names = {name for block in COMMANDS if block.spared for name in started(block)}
    names -= {"scripts/run_tests.sh"}  # which is what runs the tests
    names = {name.removeprefix("scripts/") for name in names}
    assert {name for name in names if not any(name in text for text in texts)} == set()


def test_a_spared_block_of_python_names_the_test_that_runs_it() -> None:
    for block in blocks():
        if block.spared and block.language == "python":
            test = re.search(r"tests/test_\w+\.py", block.spared)
            assert test is not None, block.spared
            assert (ROOT / test[0]).exists(), block.spared


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="other versions of Python word annotations differently"
)
def test_the_page_of_public_names_is_what_the_docstrings_say() -> None:
    from scripts.api_page import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page()


def test_the_shell_scripts_parse() -> None:
    for script in [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"]:
        subprocess.run(["bash", "-n", str(script)], check=True)
