"""Starts trainings by forking a warm process, which has imported the trainer already.

Importing torch and torchtitan takes longer than a small training. The forkserver of
`multiprocessing` does not fit: a program has only one, in the program's own environment, but runs
import the sweep's copy of the code. Its children also call a pickled function, and a run is
``python -m train``: a session of its own, an output file, an exit status.

``python -m slurm.warm FD MODULE...`` is the warm process. It reads messages from the socket FD, and
forks a process for each one, which becomes ``python -m train`` with the arguments in the message.
With the message come the run's output file and one end of a connection, over which the warm process
sends the id of the new process and, later, its exit status.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any, NoReturn

import psutil

from slurm.processes import UNKNOWN, Child, ending

TRAIN = (sys.executable, "-m", "train")
"""The first words of the commands that a warm process can run."""

_READY = b"ready"
_LONGEST_MESSAGE = 1 << 20  # bytes; by default Linux limits a message to less


class WarmError(Exception):
    """There is no warm process; the message is the reason."""


class Starter:
    """Starts the trainings of a sweep that use no GPU; each environment has one warm process.

    The warm processes end with the ``with`` block, or when this process ends.

    Args:
        modules: modules that the trainings import late. One that is not installed is left out.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._modules = modules
        self._warm: dict[tuple[str, frozenset[tuple[str, str]]], _Warm | WarmError] = {}
        self._mutex = threading.Lock()

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *_: object) -> None:
        for warm in self._warm.values():
            if isinstance(warm, _Warm):
                warm.close()

    def warm_up(
        self, command: Sequence[str], environment: Mapping[str, str], cwd: str
    ) -> "_Warm | WarmError | None":
        """Start the warm process that a command needs, and wait for its imports.

        Returns:
            The warm process, or why there is none; None for a command that needs none.
        """
        if tuple(command[: len(TRAIN)]) != TRAIN:
            return None
        key = (cwd, frozenset(environment.items()))
        with self._mutex:
            if key not in self._warm:
                try:
                    self._warm[key] = _Warm(environment, cwd, self._modules)
                except WarmError as error:
                    self._warm[key] = error
            return self._warm[key]

    def start(
        self, command: Sequence[str], *, environment: Mapping[str, str], cwd: str, output: IO[bytes]
    ) -> Child:
        """Start a command like `processes.Child`, but fork it if it is a training.

        If there is no warm process, the output begins with the reason.
        """
        warm = self.warm_up(command, environment, cwd)
        if isinstance(warm, _Warm):
            try:
                return warm.fork(command[len(TRAIN) :], output)
            except WarmError as error:
                warm = error
        if warm is not None:
            output.write(f"warm start: {warm}; this run starts without it\n".encode())
            output.flush()
        return Child(command, environment=environment, cwd=cwd, output=output)


class _Warm:
    """A warm process. The constructor waits for its imports.

    Raises:
        WarmError: it could not import the trainer, or it must not be forked.
    """

    def __init__(self, environment: Mapping[str, str], cwd: str, modules: Sequence[str]) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with tempfile.TemporaryFile() as printed:
            with other:
                self._child = Child(
                    [sys.executable, "-m", "slurm.warm", str(other.fileno()), *modules],
                    environment=environment,
                    cwd=cwd,
                    output=printed,
                    descriptors=[other.fileno()],
                )
            if self._socket.recv(len(_READY)) != _READY:
                self.close()
                printed.seek(0)
                lines = printed.read().decode(errors="replace").split("\n")
                written = [line.strip() for line in lines if line.strip()]
                raise WarmError(written[-1] if written else self._end())

    def fork(self, arguments: Sequence[str], output: IO[bytes]) -> Child:
        """Run ``python -m train`` with these arguments.

        Raises:
            WarmError: the warm process has ended, or it cannot fork.
        """
        ours, other = Pipe()
        try:
            with other:
                message = json.dumps(list(arguments)).encode()
                socket.send_fds(self._socket, [message], [output.fileno(), other.fileno()])
            return _Forked(ours)
        except (BrokenPipeError, ConnectionResetError, EOFError) as error:
            raise WarmError(self._end()) from error
        except (OSError, psutil.NoSuchProcess) as error:
            raise WarmError(f"the warm process cannot start it: {error}") from error

    def _end(self) -> str:
        return f"the warm process {ending(self._child.wait())}"

    def close(self) -> None:
        self._socket.close()
        self._child.wait()


class _Forked(Child):
    """A run that a warm process has forked.

    Args:
        connection: to the warm process.

    Raises:
        EOFError, OSError, psutil.NoSuchProcess: the warm process or the run is gone already.
        WarmError: the warm process could not fork it.
    """

    def __init__(self, connection: "Connection[None, Any]") -> None:
        self._connection, self._mutex, self._status = connection, threading.Lock(), UNKNOWN
        answer = connection.recv()
        if isinstance(answer, str):
            raise WarmError(answer)
        self.process = psutil.Process(answer)
        # The run waits for this, so that it is known before it can end.
        connection.send(None)

    def wait(self) -> int:
        return self._wait(None)

    def _wait(self, seconds: float | None) -> int:
        if not self._connection.poll(seconds):
            raise subprocess.TimeoutExpired(TRAIN, seconds or 0.0)
        with self._mutex:
            if self._status == UNKNOWN:
                with contextlib.suppress(EOFError, ConnectionResetError):
                    self._status = self._connection.recv()
        if self._status == UNKNOWN:  # the warm process is gone, and with it the status
            try:
                self.process.wait(seconds)
            except psutil.TimeoutExpired as error:
                raise subprocess.TimeoutExpired(TRAIN, error.seconds) from error
        return self._status


# The warm process


def main() -> None:
    import train.__main__  # noqa: F401

    del sys.modules["train.__main__"]  # each run executes it, as ``python -m train`` does
    control = socket.socket(fileno=int(sys.argv[1]))
    if modules := sys.argv[2:]:
        from train import torchvision_compat

        torchvision_compat.install()
        for module in modules:
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(module)
    if reason := _unfit():
        sys.exit(reason)
    # The collector would write to the objects of these modules, and so copy their memory.
    gc.collect()
    gc.freeze()
    control.send(_READY)
    arguments = _serve(control)
    if arguments is not None:
        sys.argv[1:] = arguments
        sys.orig_argv[1:] = [*TRAIN[1:], *arguments]
        atexit.register(gc.unfreeze)  # at its end, Python deletes what it can collect
        try:
            runpy.run_module("train", run_name="__main__", alter_sys=True)
        except SystemExit as error:
            if isinstance(error.code, int):
                _end(error.code)
            raise


def _unfit() -> str | None:
    """Why this process must not be forked, or None."""
    from train.cpu import has_accelerator

    if has_accelerator():
        return "a process that sees an accelerator cannot be forked"
    if threading.active_count() > 1:
        return f"a process with threads cannot be forked: {threading.enumerate()}"
    return None


def _serve(control: socket.socket) -> list[str] | None:
    """Fork for each message.

    Returns:
        In a forked process, the arguments of its run. In the warm process, None once the command
        has ended.
    """
    connections: dict[int, Connection[Any, Any]] = {}

    def report(*_: object) -> None:
        """Send the exit status of the runs that have ended."""
        while connections:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with connections.pop(pid) as connection, contextlib.suppress(OSError):
                connection.send(os.waitstatus_to_exitcode(status))

    signal.signal(signal.SIGCHLD, report)
    while True:
        message, descriptors, *_ = socket.recv_fds(control, _LONGEST_MESSAGE, 2)
        if not message:
            return None
        output, connection = descriptors[0], Connection(descriptors[1])
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            pid = os.fork()
        except OSError as error:
            with connection, contextlib.suppress(OSError):
                connection.send(str(error))
        else:
            if pid == 0:
                control.close()
                for one in connections.values():
                    one.close()
                _become_run(output, connection)
                arguments: list[str] = json.loads(message)
                return arguments
            connections[pid] = connection
            with contextlib.suppress(OSError):
                connection.send(pid)
        os.close(output)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _become_run(output: int, connection: "Connection[Any, Any]") -> None:
    """Give a forked process the state of a new one, and wait until the command knows it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.setsid()
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    if "numpy" in sys.modules:  # `random` does this by itself
        sys.modules["numpy"].random.seed()
    try:
        with connection:
            connection.recv()
    except (EOFError, OSError):  # the command is gone
        os._exit(1)


def _end(status: int) -> NoReturn:
    """End as Python does, but leave the modules: to delete them takes longer than a small run."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
