"""The reciprocal part of Ewald's sum on a mesh, by B-splines and fast Fourier transforms."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaicmd.qeq_longrange.lattice import Lattice
from mosaicmd.qeq_longrange.plans import MeshPlan

Array = jax.Array

_SCATTER_ROWS = lax.ScatterDimensionNumbers(
    update_window_dims=(1,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
)
_GATHER_ROWS = lax.GatherDimensionNumbers(
    offset_dims=(1,), collapsed_slice_dims=(), start_index_map=(0,)
)


def particle_mesh(fractional: Array, lattice: Lattice, plan: MeshPlan) -> Callable[[Array], Array]:
    """Potentials of periodic charges smeared by ``erf(alpha r) / r``, without ``k = 0``.

    Charges are spread by cardinal B-splines, multiplied in Fourier space by an influence
    function, and potentials gathered by the same splines, so the function is symmetric. The
    influence function is the one that minimises the error over all positions (Hockney &
    Eastwood), where of the reference interaction only ``k`` itself and not its aliases counts.

    Args:
        fractional: coordinates along the lattice vectors, ``[n_atoms, 3]``.
        lattice: cell, reciprocal vectors and volume.
        plan: mesh, order of the splines, and splitting.

    Returns:
        Linear function of charges ``[n_atoms]``, e, to potentials ``[n_atoms]``, e/Å.

    References:
        Essmann, Perera, Berkowitz, Darden, Lee & Pedersen, J. Chem. Phys. 103, 8577 (1995);
        Ballenegger, Cerdà & Holm, J. Chem. Theory Comput. 8, 936 (2012).
    """
    n_x, n_y, n_z = plan.mesh
    order, row = plan.order, n_z + plan.order
    wrapped = fractional - jnp.floor(lax.stop_gradient(fractional))
    points = wrapped * jnp.asarray(plan.mesh, fractional.dtype)[None]
    lowest = jnp.floor(lax.stop_gradient(points))
    w_x, w_y, w_z = (spline_weights(points[:, k] - lowest[:, k], order) for k in range(3))
    start = lowest.astype(jnp.int32)
    steps = jnp.arange(order, dtype=jnp.int32)
    x = jnp.mod(start[:, 0, None] + steps[None], n_x)
    y = jnp.mod(start[:, 1, None] + steps[None], n_y)
    z = jnp.mod(start[:, 2], n_z)  # rows along z have room for the last spline
    index = (x[:, :, None] * n_y + y[:, None, :]) * row + z[:, None, None]
    index = index.reshape(-1, 1)
    w_xy = (w_x[:, :, None] * w_y[:, None, :])[..., None]
    influence = influence_function(lattice, plan)
    n_points = math.prod(plan.mesh)

    def potentials(charges: Array) -> Array:
        updates = (charges[:, None, None, None] * w_xy * w_z[:, None, None, :]).reshape(-1, order)
        flat = lax.scatter_add(
            jnp.zeros(n_x * n_y * row, updates.dtype),
            index,
            updates,
            _SCATTER_ROWS,
            mode="promise_in_bounds",
        )
        rows = flat.reshape(n_x, n_y, row)
        density = rows[..., :n_z].at[..., :order].add(rows[..., n_z:])
        spectrum = jnp.fft.rfftn(density) * influence
        field = n_points * jnp.fft.irfftn(spectrum, s=plan.mesh)
        rows = jnp.concatenate([field, field[..., :order]], axis=-1).reshape(-1)
        near = lax.gather(rows, index, _GATHER_ROWS, (order,), mode="promise_in_bounds")
        near = near.reshape(-1, order, order, order)
        return jnp.sum(w_xy * w_z[:, None, None, :] * near, axis=(1, 2, 3))

    return potentials


def spline_weights(offsets: Array, order: int) -> Array:
    """Cardinal B-splines at the ``order`` mesh points of a charge, ``[n] -> [n, order]``.

    Args:
        offsets: distance of the charge from the mesh point below it, in [0, 1) spacings.
        order: number of points; the splines have degree ``order - 1``.
    """
    t = offsets
    splines = [t, 1.0 - t]  # M_2(t + j), j = 0, 1
    for n in range(3, order + 1):
        zero = jnp.zeros_like(t)
        same, below = [*splines, zero], [zero, *splines]
        splines = [((t + j) * same[j] + (n - j - t) * below[j]) / (n - 1) for j in range(n)]
    return jnp.stack(splines[::-1], axis=-1)


def influence_function(lattice: Lattice, plan: MeshPlan) -> Array:
    """``4 pi / V exp(-k² / 4 alpha²) / k²`` over the transform of the splines, half spectrum."""
    dtype = lattice.cell.dtype
    multiples = _multiples(plan.mesh)
    shapes = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
    parts = [jnp.asarray(m, dtype).reshape(s) for m, s in zip(multiples, shapes, strict=True)]
    squares = sum(
        jnp.square(sum(part * lattice.reciprocal[k, axis] for k, part in enumerate(parts)))
        for axis in range(3)
    )
    squares = 4.0 * math.pi**2 * jnp.asarray(squares)
    used = parts[0] ** 2 + parts[1] ** 2 + parts[2] ** 2 > 0.0
    squares = jnp.where(used, squares, 1.0)
    screen = jnp.where(used, jnp.exp(-squares / (4.0 * plan.splitting**2)) / squares, 0.0)
    for size, m, shape in zip(plan.mesh, multiples, shapes, strict=True):
        screen = screen * jnp.asarray(_spline_correction(size, plan.order)[m], dtype).reshape(shape)
    return 4.0 * math.pi / lattice.volume * screen


def _multiples(mesh: tuple[int, int, int]) -> list[np.ndarray]:
    """Integer wave numbers per direction; the last one only from 0 up."""
    full = [np.rint(np.fft.fftfreq(n) * n).astype(int) for n in mesh[:2]]
    return [*full, np.arange(mesh[2] // 2 + 1)]


@functools.lru_cache(maxsize=64)
def _spline_correction(size: int, order: int) -> np.ndarray:
    """``U² / (sum of U² over aliases)²`` with ``U = sinc(m / size)^order``, ``[size]``.

    Zero for the highest frequency of an even mesh, which does not tell ``k`` from ``-k``.
    """
    frequency = np.fft.fftfreq(size)
    aliases = np.arange(-50, 51)
    powers = np.sinc(frequency[:, None] + aliases) ** (2 * order)
    correction = np.sinc(frequency) ** (2 * order) / powers.sum(axis=1) ** 2
    if size % 2 == 0:
        correction[size // 2] = 0.0
    correction.setflags(write=False)
    return correction
