"""Progress bars where the output is a log."""

import io
import itertools

import pytest

from train.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_drawn(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> int:
    """How often the bar of 300 steps is drawn, by a clock that gains a second at each look."""
    monkeypatch.setattr("sys.stderr", stream)
    clock = itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(clock)))
    for _ in progress(range(300), miniters=1):
        pass
    return stream.getvalue().count("\r")


def test_a_log_gets_a_line_every_30_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 10 <= lines_drawn(monkeypatch, io.StringIO()) <= 12


def test_a_terminal_gets_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines_drawn(monkeypatch, Terminal()) > 250
