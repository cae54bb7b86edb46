"""``torchrun`` with the exit status of its ranks; torchrun's own is always 1 if a rank fails.

The exit status tells a preempted run from a failed one.
"""

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> int:
    try:
        run.main()
    except ChildFailedError as error:
        return status([failure.exitcode for failure in error.failures.values()])
    return 0


def status(codes: list[int]) -> int:
    """The exit status that all ranks which failed first have in common, else 1.

    A killed rank has a negative status, which counts as 1.
    """
    first = codes[0] if codes else 1
    return first if first > 0 and set(codes) == {first} else 1


if __name__ == "__main__":
    sys.exit(main())
