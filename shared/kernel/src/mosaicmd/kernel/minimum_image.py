"""The nearest periodic image, exact in any cell."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_NEAR = np.stack(np.meshgrid(*[np.arange(-1.0, 2.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
"""Combinations of lattice vectors with coefficients -1, 0 and 1, ``[27, 3]``."""


def minimum_image(vectors: Array, cell: Array, pbc: Array | np.ndarray) -> Array:
    """The shortest periodic image of every vector, ``[..., 3]``, Å, in any cell.

    Exact however skewed the cell is: the lattice vectors are reduced first, as in
    Minkowski's reduction, and then the images next to the rounded one are compared.
    Differentiable in vectors and cell. Where ``pbc`` is a NumPy array, known while
    tracing, and false in all directions, the vectors come back and nothing is computed.
    """
    if isinstance(pbc, np.ndarray) and not pbc.any():
        return vectors
    pbc = jnp.asarray(pbc)
    periodic = pbc.astype(vectors.dtype)
    own = cell * periodic[:, None]
    reduction = _reduction(jax.lax.stop_gradient(own), pbc)
    lattice = jnp.matmul(reduction, own, precision="highest")
    fixed = jax.lax.stop_gradient(lattice)
    shape = vectors.shape
    vectors = vectors.reshape(-1, 3)
    values = jax.lax.stop_gradient(vectors)
    # Coefficients of the projection onto the periodic directions.
    gram = jnp.matmul(fixed, fixed.T, precision="highest") + jnp.diag(1.0 - periodic)
    along = jnp.matmul(values, fixed.T, precision="highest")
    rounded = jnp.round(jnp.matmul(along, jnp.linalg.inv(gram), precision="highest"))
    near = jnp.asarray(_NEAR, vectors.dtype) * periodic[None]
    rest = values - jnp.matmul(rounded, fixed, precision="highest")
    images = rest[:, None] - jnp.matmul(near, fixed, precision="highest")[None]
    best = near[jnp.argmin(jnp.sum(images**2, axis=-1), axis=-1)]
    shift = jnp.matmul(rounded + best, lattice, precision="highest")
    return (vectors - shift).reshape(shape)


def _reduction(cell: Array, pbc: Array) -> Array:
    """Integers ``M`` such that the periodic rows of ``M @ cell`` are reduced, ``[3, 3]``.

    In three dimensions Minkowski's conditions involve the coefficients -1, 0 and 1 only,
    so a lattice vector is replaced by a shorter sum of this kind until there is none.
    """
    both = pbc[:, None] & pbc[None] & ~jnp.eye(3, dtype=bool)
    allowed = jnp.where(both, 1.0, 0.0).astype(cell.dtype)
    sums = jnp.asarray(_NEAR, cell.dtype)

    def improve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        combination, _, count = carry
        lattice = jnp.matmul(combination, cell, precision="highest")
        # [3, 27, 3]: every row plus every sum of the other two
        steps = sums[None] * allowed[:, None]
        candidates = lattice[:, None] + jnp.einsum(
            "rsk,kd->rsd", steps, lattice, precision="highest"
        )
        squared = jnp.sum(candidates**2, axis=-1)
        own = jnp.sum(lattice**2, axis=-1)
        best = jnp.argmin(squared, axis=1)
        shortest = jnp.min(squared, axis=1)
        gain = jnp.where(own > 0.0, shortest / jnp.where(own > 0.0, own, 1.0), 1.0)
        row = jnp.argmin(gain)
        better = gain[row] < 1.0 - 1e3 * jnp.finfo(cell.dtype).eps
        step = jnp.matmul(steps[row, best[row]], combination, precision="highest")
        changed = combination.at[row].add(jnp.where(better, step, jnp.zeros_like(step)))
        return changed, better, count + 1

    start = (jnp.eye(3, dtype=cell.dtype), jnp.ones((), bool), jnp.zeros((), jnp.int32))
    found, _, _ = jax.lax.while_loop(lambda carry: carry[1] & (carry[2] < 1000), improve, start)
    return found
