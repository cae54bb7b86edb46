"""A ``python`` for commands that import torch, each of which takes seconds of a core by itself.

``python -m MODULE`` is forked from a process that has imported other people's packages. Each
command imports the project's own modules by itself, from where it runs. Everything else, a script
or code on stdin, runs in a new process.

This file is also the program of the process that is forked, and of the ``python`` that asks it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    *("torch", "torch._dynamo", "torch._inductor.compile_fx", "torch.distributed.checkpoint"),
    *("torch.utils.tensorboard", "torchtitan.trainer", "torchtitan.components.validate"),
    *("datasets", "pandas", "matplotlib.pyplot", "scipy.stats", "submitit", "pulp", "highspy"),
)
FORK = multiprocessing.get_context("fork")
_LONGEST_MESSAGE = 1 << 20
_MOST_DESCRIPTORS = 64
_FREE = 1000  # descriptors from here on are in nobody's use


@contextlib.contextmanager
def forked_python(folder: os.PathLike[str]) -> Iterator[str]:
    """Write such a ``python`` to a folder, and yield its path; it works in the ``with`` block."""
    address, python = Path(folder, "socket"), Path(folder, "python")
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -ISE "{__file__}" "{address}" "$@"\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, address, "--serve", python],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield str(python)
    finally:
        server.terminate()
        server.communicate()


def ask(address: str, words: list[str]) -> int:
    """Have the words run by a fork of the server.

    Returns:
        Its exit status, as of a shell.
    """
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        open_here = [number for number in numbers if _is_open(number)]
        server.connect(address)
        message = json.dumps([words, dict(os.environ), os.getcwd(), open_here]).encode()
        socket.send_fds(server, [message], open_here)
        code = int(server.recv(16))
    return code if code >= 0 else 128 - code


def _is_open(number: int) -> bool:
    try:
        return not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:  # the folder's own descriptor, which is closed again
        return False


def serve(address: str, python: str) -> None:
    """Fork for each message, until this process is ended."""
    path = list(sys.path)
    for name in PACKAGES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the collector would write to these objects, and so copy their memory
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen()
    ready = selectors.DefaultSelector()
    ready.register(listener, selectors.EVENT_READ)
    os.write(1, b"ready\n")
    while True:
        for key, _ in ready.select():
            if key.fileobj is listener:
                client = listener.accept()[0]
                message, descriptors, *_ = socket.recv_fds(
                    client, _LONGEST_MESSAGE, _MOST_DESCRIPTORS
                )
                process = FORK.Process(target=_run, args=(message, descriptors, path, python))
                process.start()
                for number in descriptors:
                    os.close(number)
                # Not its `sentinel`, a pipe that the process closes.
                ended = os.pidfd_open(process.pid)
                ready.register(ended, selectors.EVENT_READ, (process, client))
            else:
                ready.unregister(key.fd)
                os.close(key.fd)
                process, client = key.data
                process.join()
                with client, contextlib.suppress(BrokenPipeError):
                    client.send(str(process.exitcode).encode())


def _run(message: bytes, descriptors: list[int], path: list[str], python: str) -> None:
    """Be, in a forked process, the new process of the words."""
    words, environment, folder, numbers = json.loads(message)
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, _FREE) for number in descriptors]
    os.closerange(0, _FREE)
    for number, to in zip(high, numbers, strict=True):
        os.dup2(number, to)
        os.close(number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    given = environment.get("PYTHONPATH", "").split(":")
    sys.path[:] = [folder, *filter(None, given), *path]
    sys.executable, sys.orig_argv, sys.argv[:] = python, [python, *words], words[1:]
    sys.modules["numpy"].random.seed()  # `random` does this by itself
    try:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


def main() -> int:
    """The program of both processes."""
    address, *words = sys.argv[1:]
    if words[:1] == ["--serve"]:
        serve(address, words[1])
    if words[:1] != ["-m"]:
        os.execv(sys.executable, [sys.executable, *words])
    return ask(address, words)


if __name__ == "__main__":
    sys.exit(main())
