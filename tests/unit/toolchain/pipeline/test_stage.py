import hashlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.pipeline.files import canonical_json
from toolchain.pipeline.stage import Stage

_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
_json = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
_objects = st.dictionaries(st.text(), _json, max_size=5)


def _shuffled(value, rng):
    if isinstance(value, dict):
        items = [(key, _shuffled(inner, rng)) for key, inner in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [_shuffled(inner, rng) for inner in value] if isinstance(value, list) else value


def _key(*, name="s", version=1, inputs=None, config=None, tools=None, arch=None) -> str:
    stage = Stage(name, version, lambda _: None, config=config or {}, tools=tools or {}, arch=arch)
    return stage.key(inputs or {})


@given(_objects, _objects, st.randoms(use_true_random=False))
def test_the_key_does_not_depend_on_the_order_of_mappings(config, other, rng: random.Random):
    inputs = {name: str(value) for name, value in other.items()}
    assert _key(config=config, inputs=inputs) == _key(
        config=_shuffled(config, rng), inputs=_shuffled(inputs, rng)
    )


@given(_objects, _objects)
def test_configs_have_the_same_key_exactly_when_they_are_the_same_json(one, other):
    # json.dumps tells 1, 1.0 and true apart, which == does not.
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (_key(config=one) == _key(config=other)) == same


@given(_json)
def test_canonical_json_reads_back(value):
    assert json.loads(canonical_json(value)) == value


def test_everything_in_the_identity_changes_the_key():
    variants = [
        {},
        {"name": "t"},
        {"version": 2},
        {"inputs": {"a": "1"}},
        {"inputs": {"b": "1"}},
        {"inputs": {"a": "2"}},
        {"config": {"a": "1"}},
        {"config": {"a": 1}},
        {"config": {"a": 1.0}},
        {"config": {"a": True}},
        {"config": {"a": None}},
        {"config": {"a": [1, 2]}},
        {"config": {"a": [2, 1]}},
        {"tools": {"a": "1"}},
        {"arch": "sm_90"},
    ]
    assert len({_key(**variant) for variant in variants}) == len(variants)


def test_the_key_is_the_sha256_of_the_canonical_json():
    """Held fast, because another encoding would make every store out there start anew."""
    key = _key(
        name="quantize", inputs={"model": "00"}, config={"bits": 4}, tools={"torch": "2.5"}, arch="sm_90"
    )
    identity = (
        b'{"arch":"sm_90","config":{"bits":4},"inputs":{"model":"00"},"stage":"quantize",'
        b'"tools":{"torch":"2.5"},"version":1}'
    )
    assert key == hashlib.sha256(identity).hexdigest()


@pytest.mark.parametrize("value", [{1: "a"}, {"a": {None: 1}}, [{True: 1}]])
def test_keys_that_json_would_turn_into_strings_are_refused(value):
    with pytest.raises(TypeError, match="a key must be a string"):
        canonical_json(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)
