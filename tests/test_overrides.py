"""Overrides: what a site is given by name, suffix, itself or layer type."""

import pytest
from torch import nn

from maxp import PARAMETRIZATIONS, ParametrizedModule
from maxp.module import LAYER_TYPES, LayerType
from maxp.overrides import ab_by_key, by_name, check_used, resolve, resolve_ab

NAME = "blocks.0.ff.fc"


def site(layer_type: LayerType = "hidden", **exponents: float) -> ParametrizedModule:
    return ParametrizedModule(nn.Linear(4, 4), 4, layer_type, **exponents)


@pytest.mark.parametrize("key", ["fc", "ff.fc", "0.ff.fc", NAME])
def test_a_name_or_a_suffix_of_it_on_dots_matches(key: str) -> None:
    assert by_name(NAME, {key: 7}) == 7


@pytest.mark.parametrize("key", ["c", "f.fc", "blocks", "blocks.0", "ff", "", "FC"])
def test_what_is_no_suffix_on_dots_does_not_match(key: str) -> None:
    assert by_name(NAME, {key: 7}) is None


def test_the_most_specific_of_everything_wins() -> None:
    # In order: the name, the longest suffix, a shorter one, the site's own, the layer type.
    overrides = {NAME: 1.0, "ff.fc": 2.0, "fc": 3.0, "hidden": 5.0}
    for expected in (1.0, 2.0, 3.0):
        assert resolve(NAME, site(), overrides, given=4.0) == expected
        del overrides[next(iter(overrides))]
    assert resolve(NAME, site(), overrides, given=4.0) == 4.0
    assert resolve(NAME, site(), overrides) == 5.0
    assert resolve(NAME, site("readout"), overrides) is None


def test_a_zero_is_a_value() -> None:
    assert resolve(NAME, site(), {"fc": 0.0, "hidden": 5.0}, given=4.0) == 0.0
    assert resolve(NAME, site(), {"hidden": 5.0}, given=0.0) == 0.0


def test_the_order_of_the_keys_does_not_matter() -> None:
    pairs = [(NAME, 1), ("ff.fc", 2), ("fc", 3), ("hidden", 5)]
    assert resolve(NAME, site(), dict(reversed(pairs))) == 1


def test_a_key_that_matches_nothing_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="ab_overrides for fd matches no site; sites are blocks"):
        check_used("ab_overrides", {"fc": 1, "hidden": 2, "fd": 3}, [NAME])


def test_three_pairs_are_those_of_embedding_hidden_and_readout() -> None:
    assert ab_by_key([(0, 0), (0.5, 0), (1, 0)]) == {
        "embedding": (0, 0),
        "hidden": (0.5, 0),
        "readout": (1, 0),
    }


def test_another_number_of_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="three"):
        ab_by_key([(0.0, 0.0), (0.0, 0.5)])


def test_the_named_parametrizations_are_those_of_the_table() -> None:
    half = 0.5
    table = {  # method.md, in the order embedding, hidden, readout
        "mup": [(-half, half), (0, half), (half, half)],
        "standard": [(0, 0), (0, half), (0, half)],
        "ntk": [(0, 0), (half, 0), (half, 0)],
        "mean-field": [(0, 0), (half, 0), (1, 0)],
    }
    assert {name: list(ab_by_key(ab).values()) for name, ab in PARAMETRIZATIONS.items()} == table
    for ab in PARAMETRIZATIONS.values():
        for layer_type in LAYER_TYPES:
            assert resolve_ab("x", site(layer_type), ab) == ab[layer_type]  # type: ignore[arg-type]


def test_ab_come_from_the_name_then_the_site_then_the_layer_type_then_mup() -> None:
    assert resolve_ab(NAME, site(), {}) == (0.0, 0.5)
    assert resolve_ab(NAME, site(), {"hidden": (0.5, 0.0)}) == (0.5, 0.0)
    assert resolve_ab(NAME, site(a=0.2, b=0.3), {"hidden": (0.5, 0.0)}) == (0.2, 0.3)
    assert resolve_ab(NAME, site(a=0.2, b=0.3), {"fc": (0.1, 0.4)}) == (0.1, 0.4)


def test_one_of_a_and_b_given_at_the_site_is_joined_by_the_others_default() -> None:
    assert resolve_ab(NAME, site("readout", a=1.0), {}) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("layer_type", "ab", "condition"),
    [
        ("embedding", (0.0, 0.5), r"a \+ b = 0"),
        ("embedding", (-0.5, 0.0), r"a \+ b = 0"),
        ("hidden", (0.0, 0.4), r"a \+ b = 1/2"),
        ("hidden", (0.5, 0.5), r"a \+ b = 1/2"),
        ("readout", (0.0, 0.4), r"a \+ b >= 1/2"),
    ],
)
def test_a_broken_pair_names_the_site_and_the_condition(
    layer_type: LayerType, ab: tuple[float, float], condition: str
) -> None:
    with pytest.raises(ValueError, match=f"{NAME}: .*{layer_type} needs {condition}"):
        resolve_ab(NAME, site(layer_type), {layer_type: ab})


def test_a_readout_may_start_smaller_than_one() -> None:
    assert resolve_ab(NAME, site("readout"), {"readout": (1.0, 0.0)}) == (1.0, 0.0)


def test_sums_that_hold_but_for_rounding_hold() -> None:
    assert resolve_ab(NAME, site(), {"fc": (0.2, 0.1 + 0.2)}) == (0.2, 0.1 + 0.2)


def test_an_operation_without_a_weight_has_nothing_that_must_hold_at_init() -> None:
    scores = ParametrizedModule(lambda q, k: q @ k.T, 8, a=1.0)
    assert resolve_ab("qk", scores, {})[0] == 1.0


def test_a_layer_types_pair_is_not_for_sites_without_a_weight() -> None:
    scores = ParametrizedModule(lambda q, k: q @ k.T, 16, "readout")
    standard = PARAMETRIZATIONS["standard"]
    assert resolve_ab("qk", scores, standard)[0] == 0.5  # 1/sqrt(head_dim), in any parametrization
    assert resolve_ab("qk", scores, {**standard, "qk": (1.0, 0.0)})[0] == 1.0
