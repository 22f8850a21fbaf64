"""The reciprocal part of Ewald's sum over half of the wave vectors."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mosaicmd.qeq_longrange.lattice import Lattice
from mosaicmd.qeq_longrange.plans import EwaldPlan

Array = jax.Array


def ewald_reciprocal(
    fractional: Array, lattice: Lattice, plan: EwaldPlan
) -> Callable[[Array], Array]:
    """Potentials of periodic charges smeared by ``erf(alpha r) / r``, without ``k = 0``.

    ``phi(r) = 4 pi / V sum_k exp(-k² / 4 alpha²) / k² S(k) exp(-i k r)``. A phase is a product
    of one factor per lattice vector, so structure factors and potentials are matrix products.

    Args:
        fractional: coordinates along the lattice vectors, ``[n_atoms, 3]``.
        lattice: cell, reciprocal vectors and volume.
        plan: which wave vectors, and the splitting.

    Returns:
        Linear function of charges ``[n_atoms]``, e, to potentials ``[n_atoms]``, e/Å.

    References:
        Ewald, Ann. Phys. 369, 253 (1921); Allen & Tildesley, Computer Simulation of
        Liquids, 2nd ed. (2017), sec. 6.2.
    """
    (l_max, m_max, n_max), weights = plan.wave_numbers()
    dtype = fractional.dtype
    angles = 2.0 * math.pi * (fractional - jnp.round(jax.lax.stop_gradient(fractional)))

    def factors(direction: int, low: int, high: int) -> Array:
        multiples = jnp.arange(low, high + 1, dtype=dtype)
        phase = multiples[:, None] * angles[None, :, direction]
        return jax.lax.complex(jnp.cos(phase), jnp.sin(phase))  # [n_multiples, n_atoms]

    first, second = factors(0, 0, l_max), factors(1, -m_max, m_max)
    third = factors(2, -n_max, n_max)
    planes = (first[:, None, :] * second[None, :, :]).reshape(-1, fractional.shape[0])

    l, m, n = (
        jnp.arange(low, high + 1, dtype=dtype).reshape(shape)
        for low, high, shape in (
            (0, l_max, (-1, 1, 1, 1)),
            (-m_max, m_max, (1, -1, 1, 1)),
            (-n_max, n_max, (1, 1, -1, 1)),
        )
    )
    b = lattice.reciprocal.reshape(3, 1, 1, 1, 3)
    squares = 4.0 * math.pi**2 * jnp.sum(jnp.square(l * b[0] + m * b[1] + n * b[2]), axis=-1)
    used = jnp.asarray(weights > 0.0)
    squares = jnp.where(used, squares, 1.0)
    screen = jnp.exp(-squares / (4.0 * plan.splitting**2)) / squares
    green = jnp.where(used, jnp.asarray(weights, dtype) * screen, 0.0)
    green = (4.0 * math.pi / lattice.volume * green).reshape(planes.shape[0], third.shape[0])

    def potentials(charges: Array) -> Array:
        structure = jnp.matmul(planes * charges[None, :], third.T, precision="highest")
        field = jnp.matmul(green * structure, third.conj(), precision="highest")
        return jnp.sum((planes.conj() * field).real, axis=0)

    return potentials
