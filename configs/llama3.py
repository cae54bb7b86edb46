"""A torchtitan config function ``SCALE_METHOD`` for every scale and method.

A dash in a method's name is an underscore: ``s1_mup_full``. ``s1`` alone is ``s1_maxP``. Method
``maxP-frozen`` needs a table, so pass ``--maxp.method`` and ``--maxp.alignment_table`` for it.
"""

from collections.abc import Callable, Iterable
from functools import partial

from train.config import Flags, make_config
from train.method.methods import METHODS
from train.model.scales import SCALES
from train.trainer import MaxPTrainer


def config_functions(scales: Iterable[str]) -> dict[str, Callable[[], MaxPTrainer.Config]]:
    """The functions of these scales by name."""
    ready = [name for name, method in METHODS.items() if not method.needs_table]
    functions: dict[str, Callable[[], MaxPTrainer.Config]] = {}
    for scale in scales:
        functions[scale] = partial(make_config, Flags(scale))
        for name in ready:
            flags = Flags(scale, name)
            functions[f"{scale}_{name.replace('-', '_')}"] = partial(make_config, flags)
    return functions


globals().update(config_functions(SCALES))
