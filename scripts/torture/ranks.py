"""Ranks of a run, as torchrun starts them, in processes that need not import torch first.

They are forked from a server that has imported the trainer and done nothing else, so each starts at
once, where a new process takes five seconds of a core. torchrun's own part is not run.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from torch.distributed import TCPStore

ROOT = Path(__file__).parents[2]

SERVER = multiprocessing.get_context("forkserver")
"""Forks processes that have imported the trainer."""
SERVER.set_forkserver_preload(["train.__main__", "torch._dynamo", "torch.utils.tensorboard"])


class Ranks:
    """Ranks that run ``main()`` of a module, each with the same command line.

    Args:
        module: "train.__main__", "rank_worker", ...
        arguments: the command line.
        processes: how many ranks.
        port: where the ranks meet at the first one, as without torchrun. By default they meet at
            this process, as at torchrun's agent, on a port that is this process's from the start.
    """

    def __init__(
        self, module: str, *arguments: str, processes: int = 2, port: int | None = None
    ) -> None:
        if port is None:
            self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._folder = tempfile.TemporaryDirectory()
        environment = {
            **os.environ,
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port if port is None else port),
            "TORCHELASTIC_USE_AGENT_STORE": str(port is None),
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        self.processes = [
            SERVER.Process(
                target=_run,
                args=(
                    module,
                    arguments,
                    {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    self._folder.name,
                ),
                daemon=True,  # it does not outlive this process
            )
            for rank in range(processes)
        ]
        for process in self.processes:
            process.start()

    def ended(self) -> str | None:
        """Why not all ranks run any more; None while they do."""
        codes = self.codes
        return None if codes.count(None) == len(codes) else f"exit codes of the ranks: {codes}"

    @property
    def codes(self) -> list[int | None]:
        """The exit status of each rank; None for one that runs, -9 for one killed by SIGKILL."""
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """End all ranks with SIGKILL."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def wait(self, limit: float | None = None) -> CompletedProcess[str]:
        """Wait until all ranks have ended: where one fails, the others are to end by themselves.

        Raises:
            TimeoutError: they have not after ``limit`` seconds; they are killed then.
        """
        deadline = None if limit is None else time.monotonic() + limit
        for process in self.processes:
            process.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if None in self.codes:
            codes = self.codes
            self.kill()
            raise TimeoutError(f"ranks did not end within {limit:g} s; exit codes: {codes}")
        code = next((code for code in self.codes if code), 0)
        read = [(Path(self._folder.name) / name).read_text() for name in ("stdout", "stderr")]
        return CompletedProcess([], code, *read)


def run_ranks(module: str, *arguments: str, processes: int = 2) -> CompletedProcess[str]:
    """Such ranks to their end."""
    return Ranks(module, *arguments, processes=processes).wait()


def _run(module: str, arguments: tuple[str, ...], environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    # Ignored where this was started in the background; ranks are to be as in a terminal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = [module, *arguments]
    main: Callable[[], int | None] = importlib.import_module(module).main
    sys.exit(main())
