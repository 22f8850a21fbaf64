"""Low-rank adapters: fine-tune a model by few numbers, with its weights as they are.

A matrix ``W`` becomes ``W + A B`` with ``A`` of ``rank`` columns and ``B`` of as many rows; only
these are trained, by whatever trains parameters::

    adapters = low_rank_adapters(params, ["layers"], rank=4, key=key)
    algorithm = force_matching(adapted(potential.energy, params), loss, optimizer)
    state = train(algorithm, adapters, n_steps, batches=batches)
    save_model("tuned", potential, merge_adapters(params, state.best))

References:
    Hu et al., arXiv:2106.09685 (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mosaicmd.kernel.pytrees import matching_leaves, named_leaves

Array = jax.Array
Params = Any
Adapters = dict[str, dict[str, Array]]
"""``A`` (``"in"``, ``[..., n_in, rank]``) and ``B`` (``"out"``, ``[..., rank, n_out]``) by path."""


def low_rank_adapters(
    params: Params, patterns: Sequence[str], *, rank: int, key: Array
) -> Adapters:
    """Adapters that change nothing yet: ``A`` is drawn, with variance ``1 / n_in``, and ``B`` zero.

    Args:
        params: of the model; what has more than two axes is taken for matrices in the last two.
        patterns: of paths or of containers such as ``"layers/0/*"``, in which ``*`` matches
            anything. Of what they match, vectors and numbers stay as they are.
        rank: at most; a matrix has no more than its smaller side.
        key: typed PRNG key.

    Raises:
        ValueError: for a rank below 1, and a pattern that matches nothing, or no matrix.
    """
    if rank < 1:
        raise ValueError(f"`rank` must be at least 1, got {rank}")
    named = named_leaves(params)
    chosen: set[str] = set()
    for pattern in patterns:
        flags = jax.tree.leaves(matching_leaves(params, [pattern]))
        found = {n for (n, x), flag in zip(named, flags, strict=True) if flag and jnp.ndim(x) >= 2}
        if not found:
            raise ValueError(f"{pattern!r} matches no matrix, and only matrices have adapters")
        chosen |= found
    adapters = {}
    for index, (name, leaf) in enumerate(named):
        if name in chosen:
            *stack, n_in, n_out = leaf.shape
            r = min(rank, n_in, n_out)
            draw = jax.random.normal(jax.random.fold_in(key, index), (*stack, n_in, r), leaf.dtype)
            adapters[name] = {
                "in": draw / jnp.sqrt(n_in).astype(leaf.dtype),
                "out": jnp.zeros((*stack, r, n_out), leaf.dtype),
            }
    return adapters


def merge_adapters(params: Params, adapters: Adapters) -> Params:
    """The parameters with ``A B`` added to their matrices: those of an ordinary model.

    Raises:
        ValueError: for adapters of paths that the parameters do not have.
    """
    named = dict(named_leaves(params))
    if unknown := sorted(set(adapters) - set(named)):
        raise ValueError(f"adapters belong to other parameters: there are no {unknown}")
    for name, adapter in adapters.items():
        change = jnp.matmul(adapter["in"], adapter["out"], precision="highest")
        named[name] = named[name] + change.astype(named[name].dtype)
    return jax.tree.unflatten(jax.tree.structure(params), list(named.values()))


def adapted(function: Callable[..., Array], params: Params) -> Callable[..., Array]:
    """An energy (or charges) function of adapters, for parameters that stay."""

    def call(adapters: Adapters, *arguments: Any) -> Array:
        return function(merge_adapters(params, adapters), *arguments)

    return call
