"""The methods of a run: a parametrization, an alignment, and whether training follows it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One way to set the learning rates.

    Attributes:
        alignment: the preset that c starts from.
        parametrization: a key of `maxp.PARAMETRIZATIONS`.
        follows: measure the alignment during training and solve again.
        one_lr: use the same lr everywhere: c = 0, no program.
        needs_table: take the alignment from a file.
    """

    alignment: str = "full"
    parametrization: str = "mup"
    follows: bool = False
    one_lr: bool = False
    needs_table: bool = False

    @property
    def ab(self) -> dict[str, tuple[float, float]]:
        # Imported here, so that the names of the methods do not need torch.
        from maxp.overrides import PARAMETRIZATIONS

        return PARAMETRIZATIONS[self.parametrization]


METHODS: dict[str, Method] = {
    "maxP": Method(follows=True),
    "mup-full": Method(alignment="full"),
    "mup-no": Method(alignment="no"),
    "maxP-frozen": Method(needs_table=True),
    "sp": Method(parametrization="standard", one_lr=True),
}


def get_method(name: str) -> Method:
    """The method of this name.

    Raises:
        ValueError: one line that names the flag and the known methods.
    """
    if name not in METHODS:
        raise ValueError(f"--method {name}: unknown; choose one of {', '.join(METHODS)}")
    return METHODS[name]
