"""``torchrun`` that ends as its ranks end: its own exit status is 1 however they did.

What started it must know a run that was preempted, and can go on, from one that failed.
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
    """The exit status of those ranks that failed first: their own where they agree, else 1.

    A rank that was killed has a negative one, and counts as 1.
    """
    first = codes[0] if codes else 1
    return first if first > 0 and set(codes) == {first} else 1


if __name__ == "__main__":
    sys.exit(main())
