"""What unquoted scalars mean, and which are refused because YAML readers differ."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from toolchain.recipe.scalars import ambiguity, resolve


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("true", True), ("False", False), ("0", 0), ("-12", -12),
        ("+3", 3), ("0x1F", 31), ("1.5", 1.5), ("1e3", 1000.0), (".5", 0.5), ("-.inf", -math.inf),
        ("3%", "3%"), ("1.2.1", "1.2.1"), ("none", "none"), ("org/name", "org/name"), ("nULL", "nULL"),
        ("2026-04-20", "2026-04-20"),
    ],
)  # fmt: skip
def test_core_schema(text: str, value: object) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)
    assert ambiguity(text) is None


def test_not_a_number() -> None:
    value = resolve(".nan")
    assert isinstance(value, float)
    assert math.isnan(value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("yes", "true"), ("No", "false"), ("ON", "true"), ("off", "false"), ("y", "true"), ("n", "false"),
        ("010", "10"), ("0o17", "17"), ("-007", "7"), ("00", "0"), ("0b101", "5"), ("1_000", "1000"),
        ("1_000.5", "1000.5"), ("1:30", '"1:30"'), ("0x_f", "0xf"), ("0b_0", "0"), ("-0b1", "-1"),
    ],
)  # fmt: skip
def test_ambiguous_scalars(text: str, meant: str) -> None:
    found = ambiguity(text)
    assert found is not None
    assert found[1] == meant


@given(text=st.text(alphabet="0123456789_+-.:exobinfaNtrueyslOh ", max_size=8))
def test_whatever_is_not_called_ambiguous_means_the_same_in_yaml_1_1(text: str) -> None:
    """PyYAML reads 1.1. Known and wanted differences: exponents without a dot or sign, and dates."""
    ours = resolve(text)
    if ambiguity(text) is not None or isinstance(ours, float):
        return
    resolver = yaml.SafeLoader("")
    theirs = resolver.resolve(yaml.ScalarNode, text, (True, False)).rsplit(":", 1)[1]
    kinds = {bool: "bool", int: "int", str: "str", type(None): "null"}
    expected = kinds[type(ours)]
    if theirs in ("timestamp", "merge", "value", "float"):
        assert expected == "str"
    else:
        assert theirs == expected
