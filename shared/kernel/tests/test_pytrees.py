"""Pytrees as named arrays: exact restoration, and mismatches that are named."""

import dataclasses
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicmd.kernel.pytrees import decode, encode, from_arrays, matching_leaves, to_arrays, to_jax


class State(NamedTuple):
    position: jax.Array
    key: jax.Array
    extra: object = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Moments:
    mean: jax.Array
    count: int


def example():
    params = {"w": jnp.arange(6.0, dtype=jnp.float32).reshape(2, 3), "b": [jnp.ones(2), None]}
    return {
        "params": params,
        "opt": optax.adam(1e-3).init(params),
        "state": State(jnp.array([-0.0, jnp.nan, 1e-310]), jax.random.key(3)),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 2),
        "moments": Moments(jnp.array(2.0, jnp.bfloat16), 7),
        "host": (np.arange(3, dtype=np.int8), np.float64(1.5), np.array(True)),
        "plain": (True, 2**40, 0.1),
        "empty": ({}, [], ()),
        "legacy key": jax.random.PRNGKey(0),
    }


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(a) is type(b)
        if hasattr(a, "dtype"):
            assert a.dtype == b.dtype
            assert getattr(a, "weak_type", None) == getattr(b, "weak_type", None)
        first, second = to_arrays(a), to_arrays(b)
        assert [(n, v.tobytes()) for n, v in first.items()] == [
            (n, v.tobytes()) for n, v in second.items()
        ]


def test_a_state_is_restored_bit_for_bit_and_kind_for_kind():
    state = example()
    template = jax.tree.map(lambda leaf: leaf, state)
    assert_same(from_arrays(template, to_arrays(state)), state)


def test_restored_keys_continue_the_same_stream():
    state = example()
    restored = from_arrays(example(), to_arrays(state))
    for name in ("keys", "legacy key"):
        draw = jax.vmap(jax.random.normal) if name == "keys" else jax.random.normal
        np.testing.assert_array_equal(draw(restored[name]), draw(state[name]))
    assert jax.random.key_impl(restored["keys"]) == jax.random.key_impl(state["keys"])


def test_template_may_be_shapes_alone():
    state = {"x": jnp.arange(3.0), "key": jax.random.key(5)}
    assert_same(from_arrays(jax.eval_shape(lambda: state), to_arrays(state)), state)


def test_weakly_typed_leaves_stay_weak():
    """A leaf that turns strong would promote, and compile, differently after a resume."""
    state = {"scalar": jnp.asarray(0.5), "vector": jnp.full(3, -0.25), "strong": jnp.float32(1.0)}
    assert [leaf.weak_type for leaf in jax.tree.leaves(state)] == [True, False, True]
    assert_same(from_arrays(state, to_arrays(state)), state)


def test_the_stored_leaf_and_not_the_template_decides_what_is_weak():
    """Optimisers turn a weak parameter strong; a template from before that must not undo it."""
    weak, strong = jnp.asarray(0.5), jnp.float64(0.5)
    assert not from_arrays({"x": weak}, to_arrays({"x": strong}))["x"].weak_type
    assert from_arrays({"x": strong}, to_arrays({"x": weak}))["x"].weak_type
    assert from_arrays({"x": 1.0}, to_arrays({"x": weak})) == {"x": 0.5}
    structure, stored = encode({"weak": weak, "strong": strong})
    restored = decode(structure, stored, to_jax)
    assert (restored["weak"].weak_type, restored["strong"].weak_type) == (True, False)


def test_restored_numpy_leaves_are_copies():
    stored = {"x": np.arange(3.0)}
    restored = from_arrays({"x": np.zeros(3)}, stored)
    restored["x"][0] = 5.0
    assert stored["x"][0] == 0.0


def test_paths_name_the_leaves():
    names = set(to_arrays({"a": [1.0, State(jnp.ones(1), jax.random.key(0))]}))
    assert names == {"a/0", "a/1/position", "a/1/key:threefry2x32"}


def test_keys_with_slashes_stay_apart():
    tree = {"a/b": 1.0, "a": {"b": 2.0}}
    assert from_arrays(tree, to_arrays(tree)) == tree
    weights = {"a/b": np.array(1.0), "a": {"b": np.array(2.0)}}
    assert decode(*encode(weights)) == weights


def test_every_mismatch_is_named():
    stored = to_arrays({"a": jnp.zeros(3), "b": jnp.zeros(2), "c": 1, "k": jax.random.key(0)})
    template = {
        "a": jnp.zeros((3, 1)),
        "b": jnp.zeros(2, jnp.float32),
        "d": 1.0,
        "k": jax.random.key(0, impl="rbg"),
    }
    with pytest.raises(ValueError, match="do not fit") as caught:
        from_arrays(template, stored)
    message = str(caught.value)
    for part in (
        "d is missing",
        "c is unexpected",
        "a is float64[3], expected float64[3,1]",
        "b is float64[2], expected float32[2]",
        "k:rbg is missing",
    ):
        assert part in message


def test_leaves_that_are_no_arrays_are_named():
    for leaf in ("text", object(), 2**64):
        with pytest.raises(ValueError, match=r"^a/0 is "):
            to_arrays({"a": [leaf]})


arrays = st.builds(
    lambda content, dtype: np.frombuffer(content, dtype),
    st.binary(min_size=16, max_size=16),
    st.sampled_from(["f4", "f8", "i4", "u2"]),
)
weights = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | arrays,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def frozen(tree):
    """A comparable form of nested containers, exact in types and bits."""
    if isinstance(tree, dict):
        return "dict", [(key, frozen(child)) for key, child in sorted(tree.items())]
    if isinstance(tree, list | tuple):
        return type(tree).__name__, [frozen(child) for child in tree]
    if isinstance(tree, np.ndarray):
        return str(tree.dtype), tree.shape, tree.tobytes()
    return type(tree).__name__, tree.hex() if isinstance(tree, float) else tree


@settings(deadline=None, max_examples=100)
@given(weights)
def test_structure_survives_as_json(tree):
    structure, stored = encode(tree)
    restored = decode(json.loads(json.dumps(structure, allow_nan=False)), stored)
    assert frozen(restored) == frozen(tree)


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"a": [State(jnp.ones(1), jnp.ones(1))]}, "params/a/0 is a State"),
        ({"a": {3: 1.0}}, "params/a has keys that are not text"),
        ({"a": "text"}, "params/a is a str"),
        ({"a": jax.random.key(0)}, "params/a is a"),
    ],
)
def test_weights_of_other_kinds_are_named(tree, path):
    with pytest.raises(ValueError, match=path):
        encode(tree)


@pytest.mark.parametrize(
    "structure",
    [
        {"array": "y"},
        {"list": [{"array": "x"}, {"array": "x"}]},
        {"list": []},
        {"array": ["x"]},
        {"list": [{"array": "x"}, "x"]},
        {"list": [{"array": "x"}, {"int": True}]},
        {"list": [{"array": "x"}, {"float": "import os"}]},
        {"list": [{"array": "x"}, {"float": "0x1p99999"}]},
        {"list": {"array": "x"}},
        {"array": "x", "more": 1},
        {"array": "x", "weak": "yes"},
        {"__class__": "os.system"},
        [{"array": "x"}],
    ],
)
def test_malformed_structure_is_refused(structure):
    with pytest.raises(ValueError, match=r"structure|missing or used twice|hexadecimal"):
        decode(structure, {"x": np.zeros(1)})


def test_patterns_match_leaves_and_containers():
    tree = {"a": {"b": 1.0, "c": 2.0}, "layers": (jnp.zeros(1), {"w": jnp.zeros(2)})}
    assert matching_leaves(tree, ["a/b", "layers/1"]) == {
        "a": {"b": True, "c": False},
        "layers": (False, {"w": True}),
    }
    assert matching_leaves(tree, ()) == jax.tree.map(lambda _: False, tree)
    with pytest.raises(ValueError, match=r"'layers/2' matches no parameter"):
        matching_leaves(tree, ["layers/2"])
