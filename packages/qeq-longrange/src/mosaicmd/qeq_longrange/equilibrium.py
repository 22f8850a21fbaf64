"""Charges of least energy when the charges of fragments are given: dense, and by iteration.

``E(q) = chi . q + q . H q / 2``. Fragments are disjoint sets of atoms that cover the system, by
default one; each has a given charge. Changes that leave these alone have the sum zero on every
fragment; ``P`` projects on them. Both solvers find such a change, and nothing else, so charges are
conserved to rounding however accurately they are found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve

Array = jax.Array
LinearFn = Callable[[Array], Array]


class Equilibrium(NamedTuple):
    """Charges in equilibrium, and what to know of them.

    Where ``stable`` is false the charges are not numbers: the energy has no minimum, or the
    iteration ended before it was found. :func:`require_equilibrium` says so.
    """

    charges: Array  # [n_atoms], e, zero for masked atoms
    chemical_potential: Array  # [], or [n_fragments], eV/e: dE/dq of every atom in it
    stable: Array  # [], bool
    residual: Array  # [], eV/e: largest difference of a dE/dq from the chemical potential


def equilibrate_charges(
    hardness_matrix: Array,
    electronegativity: Array,
    total_charge: Array | float,
    mask: Array,
    *,
    fragments: Array | None = None,
) -> Equilibrium:
    """Charges that minimise ``chi . q + q . H q / 2`` at given charges of fragments.

    The constraints are eliminated: ``P H P`` is factored by Cholesky, so ``H`` need be positive
    only for changes that they allow. Differentiable to any order in every argument by one more
    solution with the same factor.

    Args:
        hardness_matrix: symmetric ``H``, ``[n_atoms, n_atoms]``, eV/e²; hardness included.
        electronegativity: ``chi``, ``[n_atoms]``, eV/e.
        total_charge: net charge, e; with ``fragments`` one of each, ``[n_fragments]``.
        mask: real atoms, ``[n_atoms]``, bool; rows and columns of others are not looked at.
        fragments: the fragment that an atom is in, ``[n_atoms]``, int; each needs a real atom.

    Raises:
        ValueError: for shapes that do not belong to the same number of atoms.

    References:
        Rappé & Goddard, J. Phys. Chem. 95, 3358 (1991).
    """
    n_slots = mask.shape[0]
    _check_shape("hardness_matrix", hardness_matrix, (n_slots, n_slots))
    both = mask[:, None] & mask[None, :]
    matrix = jnp.where(both, hardness_matrix, 0.0)
    allowed = _constraints(matrix.dtype, electronegativity, total_charge, mask, fragments)
    frozen = jax.lax.stop_gradient(matrix)
    scale = jnp.sum(jnp.diagonal(jnp.abs(frozen))) / jnp.maximum(jnp.sum(allowed.real), 1.0) + 1e-6
    inner = allowed.project(allowed.project(frozen).T)
    rest = jnp.eye(n_slots, dtype=matrix.dtype) - allowed.project(jnp.diag(allowed.real))
    factor = jnp.linalg.cholesky(0.5 * (inner + inner.T) + scale * rest)

    def solve(curvature: LinearFn, target: Array) -> Array:
        del curvature
        return cho_solve((factor, True), target)

    def operator(charges: Array) -> Array:
        return jnp.matmul(matrix, charges, precision="highest")

    return _equilibrate(operator, allowed, scale, solve)


def equilibrate_charges_iteratively(
    hardness_operator: LinearFn,
    diagonal: Array,
    electronegativity: Array,
    total_charge: Array | float,
    mask: Array,
    *,
    fragments: Array | None = None,
    tolerance: float | None = None,
    max_iterations: int = 1000,
) -> Equilibrium:
    """The same as :func:`equilibrate_charges`, of a matrix that is only ever applied.

    Conjugate gradients on ``P H P``, preconditioned by the exact solution for the diagonal
    alone under the same constraints. Differentiable to any order in everything that the
    arguments depend on: a derivative is one more solution of the same kind.

    Args:
        hardness_operator: ``q -> H q``, ``[n_atoms] -> [n_atoms]``, eV/e; symmetric.
        diagonal: of ``H``, about, ``[n_atoms]``, eV/e², positive; only speed depends on it.
        electronegativity: ``chi``, ``[n_atoms]``, eV/e.
        total_charge: as there.
        mask: real atoms.
        fragments: as there.
        tolerance: of the residual, relative to where it starts; by default 1e-10, and 1e-5 in
            float32.
        max_iterations: after which the charges are given up.

    References:
        Nakano, Comput. Phys. Commun. 104, 59 (1997); Gould, Hribar & Nocedal, SIAM J. Sci.
        Comput. 23, 1376 (2001), for the preconditioner.
    """
    n_slots, dtype = mask.shape[0], jnp.result_type(diagonal, 0.0)
    _check_shape("diagonal", diagonal, (n_slots,))
    if tolerance is None:
        tolerance = 1e-10 if jnp.finfo(dtype).bits >= 64 else 1e-5
    allowed = _constraints(dtype, electronegativity, total_charge, mask, fragments)
    inverse = jax.lax.stop_gradient(
        allowed.real / jnp.where(mask, jnp.asarray(diagonal, dtype), 1.0)
    )
    share = jnp.maximum(allowed.sums(inverse), jnp.finfo(dtype).tiny)

    def precondition(residual: Array) -> Array:
        level = allowed.sums(inverse * residual) / share
        return inverse * (residual - allowed.spread(level))

    def solve(curvature: LinearFn, target: Array) -> Array:
        size = jnp.max(jnp.abs(target))
        size = jnp.where(size > 0.0, size, 1.0)
        target = target / size
        goal = tolerance**2 * jnp.sum(jnp.square(target))
        first = precondition(target)
        product = jnp.sum(target * first)
        count = jnp.zeros((), jnp.int32)
        start = (jnp.zeros_like(target), target, first, product, jnp.asarray(True), count)

        def unfinished(state: Any) -> Array:
            _, residual, _, _, positive, count = state
            left = jnp.sum(jnp.square(residual))
            return (left > goal) & positive & (count < max_iterations)

        def advance(state: Any) -> Any:
            x, residual, direction, product, _, count = state
            bent = curvature(direction)
            along = jnp.sum(direction * bent)
            positive = along > 0.0
            step = jnp.where(positive, product / along, 0.0)
            x, residual = x + step * direction, allowed.project(residual - step * bent)
            new = precondition(residual)
            after = jnp.sum(residual * new)
            direction = new + after / product * direction
            return x, residual, direction, after, positive, count + 1

        x, residual, _, _, positive, _ = jax.lax.while_loop(unfinished, advance, start)
        found = positive & (jnp.sum(jnp.square(residual)) <= goal)
        return jnp.where(found, size * x, jnp.nan)

    return _equilibrate(hardness_operator, allowed, 1.0, solve)


def require_equilibrium(found: Equilibrium) -> None:
    """Raise a ``ValueError`` if some charges are not those of least energy.

    Args:
        found: of concrete arrays, with any leading axes.
    """
    stable = np.asarray(found.stable)
    if not stable.all():
        which = "" if stable.ndim == 0 else f" of structures {np.flatnonzero(~stable)[:5].tolist()}"
        raise ValueError(
            f"charges{which} of least energy were not found: the matrix of hardness and Coulomb "
            "interaction is not positive for changes of charge that the constraints allow, or an "
            "iteration stalled. Raise `hardness` or `widths`, give point charges a width, use a "
            "`plan` that truncates less, or allow more `max_iterations`"
        )


class _Constraints(NamedTuple):
    """Which changes of charge are allowed, and what the solution starts from."""

    real: Array  # [n_atoms], 1 or 0
    labels: Array | None  # [n_atoms], int
    counts: Array  # [n_fragments]
    totals: Array  # [n_fragments], e
    chi: Array  # [n_atoms], eV/e

    def sums(self, values: Array) -> Array:
        """Over each fragment, ``[n_atoms, ...] -> [n_fragments, ...]``."""
        if self.labels is None:
            return jnp.sum(values, axis=0, keepdims=True)
        return jax.ops.segment_sum(values, self.labels, self.counts.shape[0])

    def spread(self, values: Array) -> Array:
        """The value of its fragment at every atom, ``[n_fragments, ...] -> [n_atoms, ...]``."""
        if self.labels is None:
            return jnp.broadcast_to(values, (self.real.shape[0], *values.shape[1:]))
        return values[self.labels]

    def project(self, values: Array) -> Array:
        """``P`` from the left, ``[n_atoms, ...]``."""
        shape = (-1,) + (1,) * (values.ndim - 1)
        real, counts = self.real.reshape(shape), self.counts.reshape(shape)
        values = real * values
        return values - real * self.spread(self.sums(values) / counts)


def _constraints(
    dtype: Any,
    electronegativity: Array,
    total_charge: Array | float,
    mask: Array,
    fragments: Array | None,
) -> _Constraints:
    _check_shape("electronegativity", electronegativity, mask.shape)
    totals = jnp.asarray(total_charge, dtype)
    if fragments is None:
        _check_shape("total_charge", totals, ())
        totals = totals[None]
    else:
        _check_shape("fragments", fragments, mask.shape)
        if totals.ndim != 1:
            raise ValueError(
                "`total_charge` must be one number for each of the `fragments`, got shape "
                f"{totals.shape}"
            )
    real = mask.astype(dtype)
    chi = jnp.where(mask, jnp.asarray(electronegativity, dtype), 0.0)
    labels = None if fragments is None else jnp.where(mask, fragments, 0)
    bare = _Constraints(real, labels, jnp.ones_like(totals), totals, chi)
    return bare._replace(counts=jnp.maximum(bare.sums(real), 1.0))


def _equilibrate(
    operator: LinearFn,
    allowed: _Constraints,
    scale: Array | float,
    solve: Callable[[LinearFn, Array], Array],
) -> Equilibrium:
    """The allowed change that makes the slope of the energy even on every fragment."""

    def curvature(values: Array) -> Array:
        """``P H P``, and a positive multiple of what it leaves out."""
        inner = allowed.project(values)
        return allowed.project(operator(inner)) + scale * (values - inner)

    real = allowed.real
    uniform = real * allowed.spread(allowed.totals / allowed.counts)
    push = allowed.project(allowed.chi + operator(uniform))
    shift = jax.lax.custom_linear_solve(curvature, -push, solve, symmetric=True)
    charges = uniform + allowed.project(allowed.project(shift))
    slope = real * (allowed.chi + operator(charges))
    level = allowed.sums(slope) / allowed.counts
    residual = jnp.max(jnp.abs(slope - real * allowed.spread(level)))
    single = allowed.labels is None
    stable = jnp.all(jnp.isfinite(shift))
    return Equilibrium(charges, level[0] if single else level, stable, residual)


def _check_shape(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if jnp.shape(array) != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {jnp.shape(array)}")
