"""Pytrees as named arrays: onto a template, for states, or with their structure, for weights.

A state (optimiser, sampler, dynamics) may be any pytree; it is restored onto a template of
the same structure, which the program that resumes has anyway. Weights must be loadable
without the program that wrote them, so they are nested ``dict``, ``list`` and ``tuple``
only, and their structure is stored beside the arrays as plain JSON.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.config import suggest

Pytree = Any

_WEAK = ":weak"


def to_arrays(tree: Pytree) -> dict[str, np.ndarray]:
    """Every leaf as a numpy array under its path, such as ``"momentum/0"``.

    Leaves may be JAX or numpy arrays, PRNG keys or Python numbers. The path of a key ends
    in the name of its algorithm, that of a weakly typed array in ``:weak``: such an array
    takes the precision of what it meets, so it must come back weakly typed.

    Raises:
        ValueError: naming the path of any other leaf.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, leaf in named_leaves(tree):
        arrays[_unique(name + _WEAK * _is_weak(leaf), arrays)] = _to_numpy(leaf, name)
    return arrays


def from_arrays(template: Pytree, arrays: Mapping[str, np.ndarray]) -> Pytree:
    """A pytree like ``template`` with the values that :func:`to_arrays` stored.

    Args:
        template: same structure, shapes and dtypes; its values are not used, so
            ``jax.eval_shape`` serves for states of JAX arrays. What is a numpy array,
            a Python number or a PRNG key there becomes one again.
        arrays: by path.

    Raises:
        ValueError: naming every path that is missing, unexpected, or of another shape or
            dtype.
    """
    unused, leaves, problems = dict(arrays), [], []
    for name, leaf in named_leaves(template):
        weak = name not in unused and name + _WEAK in unused
        stored = unused.pop(name + _WEAK * weak, None)
        expected = _describe(leaf)
        if stored is None:
            problems.append(f"{name} is missing")
        elif (found := _describe(stored)) != expected:
            problems.append(f"{name} is {found}, expected {expected}")
        else:
            leaves.append(_like(leaf, stored, weak))
    problems += [f"{name} is unexpected" for name in sorted(unused)]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError("stored arrays do not fit: " + "; ".join(problems[:8]) + more)
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def encode(
    tree: Pytree, name: str = "params", *, text: bool = False
) -> tuple[Any, dict[str, np.ndarray]]:
    """The structure of nested containers as JSON, and the arrays by path.

    Args:
        tree: ``dict`` with text keys, ``list``, ``tuple`` and ``None``, holding numpy or
            JAX arrays and Python numbers.
        name: first part of every path.
        text: allow strings as leaves.

    Raises:
        ValueError: naming the path of anything else, for example a named tuple.
    """
    arrays: dict[str, np.ndarray] = {}

    def visit(node: Any, path: str) -> Any:
        if node is None:
            return None
        if type(node) is dict:
            if not all(type(key) is str for key in node):
                raise ValueError(f"{path} has keys that are not text: {list(node)[:5]}")
            return {
                "dict": {key: visit(child, f"{path}/{key}") for key, child in sorted(node.items())}
            }
        if type(node) in (list, tuple):
            children = [visit(child, f"{path}/{index}") for index, child in enumerate(node)]
            return {type(node).__name__: children}
        if type(node) in (bool, int):
            return {type(node).__name__: node}
        if type(node) is float:
            return {"float": node.hex()}
        if text and type(node) is str:
            return {"str": node}
        if isinstance(node, np.ndarray | np.generic | jax.Array) and not _is_key(node):
            unique = _unique(path, arrays)
            arrays[unique] = np.asarray(node)
            return {"array": unique} | ({"weak": True} if _is_weak(node) else {})
        raise ValueError(
            f"{path} is a {type(node).__name__}; weights are arrays and numbers in dict, list "
            "and tuple"
        )

    return visit(tree, name), arrays


def decode(
    structure: Any,
    arrays: Mapping[str, np.ndarray],
    make: Callable[[np.ndarray, bool], Any] = lambda stored, weak: stored,
    *,
    text: bool = False,
) -> Pytree:
    """The pytree that :func:`encode` took apart.

    Args:
        structure: from :func:`encode`.
        arrays: from :func:`encode`.
        make: turns an array, and whether it was weakly typed, into a leaf.
        text: allow strings as leaves.

    Raises:
        ValueError: if the structure is malformed or does not use every array once.
    """
    left = dict(arrays)

    def visit(node: Any) -> Any:
        match node:
            case None:
                return None
            case {"dict": dict(children), **rest} if not rest:
                return {key: visit(child) for key, child in children.items()}
            case {"list": list(children), **rest} if not rest:
                return [visit(child) for child in children]
            case {"tuple": list(children), **rest} if not rest:
                return tuple(visit(child) for child in children)
            case {"array": str(name), **rest} if rest in ({}, {"weak": True}):
                if name not in left:
                    raise ValueError(f"array {name!r} is missing or used twice")
                return make(left.pop(name), bool(rest))
            case {"bool": bool(value), **rest} if not rest:
                return value
            case {"int": int(value), **rest} if not rest and not isinstance(value, bool):
                return value
            case {"float": str(value), **rest} if not rest:
                return float.fromhex(value)
            case {"str": str(value), **rest} if text and not rest:
                return value
        raise ValueError(f"the structure holds {str(node)[:60]!r}, which is no node")

    try:
        tree = visit(structure)
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"the structure cannot be read: {error}") from error
    if left:
        raise ValueError(f"the structure does not use the arrays {sorted(left)[:5]}")
    return tree


def named_leaves(tree: Pytree) -> list[tuple[str, Any]]:
    """Leaves with their paths, which are all different, in the order of the tree."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "."
        if _is_key(leaf):
            name += f":{_key_impl(leaf)}"
        named[_unique(name, named)] = leaf
    return list(named.items())


def matching_leaves(tree: Pytree, patterns: Sequence[str]) -> Pytree:
    """Whether the path of each leaf, or of a container that it is in, matches a pattern.

    Args:
        tree: for example parameters.
        patterns: such as ``"layers/0/*"``, in which ``*`` matches anything.

    Returns:
        A tree of ``bool``.

    Raises:
        ValueError: for a pattern that matches nothing.
    """
    names = [name for name, _ in named_leaves(tree)]

    def matches(name: str, pattern: str) -> bool:
        parts = name.split("/")
        ancestors = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        return any(fnmatch.fnmatchcase(path, pattern) for path in ancestors)

    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise ValueError(
                f"{pattern!r} matches no parameter{suggest(pattern, names)}; there are "
                f"{', '.join(names[:20])}" + (", ..." if len(names) > 20 else "")
            )
    flags = [any(matches(name, pattern) for pattern in patterns) for name in names]
    return jax.tree.unflatten(jax.tree.structure(tree), flags)


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    """The name itself, or with a number if keys that contain "/" made two paths equal."""
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}#{count}"
    return candidate


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(leaf: Any) -> str:
    """Name of the algorithm of a key array, or of the shape of one."""
    found: list[str] = []
    jax.eval_shape(lambda key: found.append(str(jax.random.key_impl(key))), leaf)
    return found[0]


def _to_numpy(leaf: Any, name: str) -> np.ndarray:
    if _is_key(leaf):
        return np.asarray(jax.random.key_data(leaf))
    if isinstance(leaf, np.ndarray | np.generic | jax.Array | bool | float):
        return np.asarray(leaf)
    if isinstance(leaf, int) and abs(leaf) < 2**63:
        return np.asarray(leaf, np.int64)
    raise ValueError(f"{name} is {leaf!r}, which is no array and no number of 64 bits")


def _describe(leaf: Any) -> str:
    """Shape and dtype of what a leaf is stored as, for example ``"float32[3,2]"``."""
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    elif not hasattr(leaf, "dtype"):
        leaf = _to_numpy(leaf, "template")
    return f"{np.dtype(leaf.dtype)}[{','.join(map(str, leaf.shape))}]"


def _is_weak(leaf: Any) -> bool:
    return bool(getattr(leaf, "weak_type", False))


def _like(leaf: Any, stored: np.ndarray, weak: bool) -> Any:
    """The stored value as the kind of thing that ``leaf`` is."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.array(stored), impl=_key_impl(leaf))
    if isinstance(leaf, np.generic):
        return stored[()]
    if isinstance(leaf, np.ndarray):
        return stored.copy()
    if isinstance(leaf, bool | int | float):
        return type(leaf)(stored.item())
    return to_jax(stored, weak)


def to_jax(stored: np.ndarray, weak: bool = False) -> jax.Array:
    """A JAX array with the bits of ``stored``, weakly typed like a Python number or not."""
    if weak:
        zeros = jnp.full(stored.shape, stored.dtype.type(0).item())
        if zeros.dtype == stored.dtype:  # the default width, which weak types have
            return zeros.at[...].set(stored)
    return jnp.array(stored)
