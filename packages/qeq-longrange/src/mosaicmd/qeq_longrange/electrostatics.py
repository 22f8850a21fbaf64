"""Coulomb potentials, energies and matrices of charges under one plan.

The potentials are linear in the charges. :func:`coulomb_operator` computes all that does not
depend on them once and returns the linear function; the rest is written with it. Units are eV,
Å and e. Unit charges at a distance ``r`` have the energy ``k / r`` with
``k = mosaicmd.kernel.units.COULOMB_CONSTANT``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.units import COULOMB_CONSTANT
from mosaicmd.qeq_longrange.ewald import ewald_reciprocal
from mosaicmd.qeq_longrange.lattice import Lattice, fractional_coordinates, lattice_of
from mosaicmd.qeq_longrange.particle_mesh import particle_mesh
from mosaicmd.qeq_longrange.plans import DirectPlan, EwaldPlan, MeshPlan
from mosaicmd.qeq_longrange.short_range import (
    Exclusions,
    all_pairs_kernel,
    edge_kernels,
    excluded_kernels,
    self_kernel,
    subtract_excluded,
    sum_over_edges,
)

Array = jax.Array
Plan = DirectPlan | EwaldPlan | MeshPlan
LinearFn = Callable[[Array], Array]

_LARGEST_STORED_MATRIX = 2048  # atoms
_ROWS_AT_ONCE = 64


def coulomb_operator(
    system: System,
    graph: Graph | None,
    plan: Plan,
    *,
    widths: Array | None = None,
    exclusions: Exclusions | None = None,
) -> LinearFn:
    """The linear function from charges to potentials, with everything else computed.

    The function is symmetric: ``p . A(q) = q . A(p)``. It is positive definite for Gaussian
    charges that are wide enough. Masked atoms have no charge and the potential zero.

    In three periodic directions a net charge is neutralised by a uniform background, and the
    mean potential over the cell is zero (conducting surroundings). A slab has no background:
    a charged sheet of area ``A`` has the potential ``-2 pi k |z| / A``, no constant added. A
    point charge does not act on itself, a Gaussian one does.

    Args:
        system: one structure; its charges are not looked at.
        graph: neighbors within at least ``plan.cutoff``; ``None`` for a direct sum over all
            pairs.
        plan: made by :func:`~mosaicmd.qeq_longrange.planning.plan_coulomb`.
        widths: standard deviations of Gaussian charges, ``[n_atoms]``, Å; 0 is a point.
        exclusions: pairs without, or with less, interaction.

    Returns:
        ``charges [n_atoms], e -> potentials [n_atoms], eV/e``; the half of their product,
        summed, is the energy.

    Raises:
        ValueError: if the plan needs a graph and there is none.
    """
    dtype = system.positions.dtype
    if widths is not None:
        widths = jnp.where(system.mask, jnp.asarray(widths, dtype), 0.0)
    parts = [_pairs(system, graph, plan, widths)]
    if exclusions is not None:
        pairs = exclusions
        removed = excluded_kernels(system, pairs, widths, plan.n_periodic)
        parts.append(lambda charges: subtract_excluded(removed, charges, pairs))
    splitting = None
    if not isinstance(plan, DirectPlan):
        splitting = plan.splitting
        lattice = lattice_of(system, plan.slab_height)
        fractional = fractional_coordinates(system.positions, lattice)
        if isinstance(plan, EwaldPlan):
            parts.append(ewald_reciprocal(fractional, lattice, plan))
        else:
            parts.append(particle_mesh(fractional, lattice, plan))
        parts.append(_background(lattice, splitting, widths))
        if plan.slab_height is not None:
            heights = fractional[:, 2] * plan.slab_height
            parts.append(_slab(heights, lattice, plan.slab_height, widths))
    own = self_kernel(widths, splitting)

    def potentials(charges: Array) -> Array:
        charges = jnp.where(system.mask, jnp.asarray(charges, dtype), 0.0)
        total = own * charges
        for part in parts:
            total = total + part(charges)
        return jnp.where(system.mask, COULOMB_CONSTANT * total, 0.0)

    return potentials


def coulomb_potentials(
    charges: Array,
    system: System,
    graph: Graph | None,
    plan: Plan,
    *,
    widths: Array | None = None,
    exclusions: Exclusions | None = None,
) -> Array:
    """Electrostatic potential at every atom, ``[n_atoms]``, eV/e; see :func:`coulomb_operator`."""
    return coulomb_operator(system, graph, plan, widths=widths, exclusions=exclusions)(charges)


def coulomb_energy(
    charges: Array,
    system: System,
    graph: Graph | None,
    plan: Plan,
    *,
    widths: Array | None = None,
    exclusions: Exclusions | None = None,
) -> Array:
    """Electrostatic energy, eV: half the sum of charges times potentials."""
    potentials = coulomb_potentials(
        charges, system, graph, plan, widths=widths, exclusions=exclusions
    )
    return 0.5 * jnp.sum(jnp.asarray(charges, potentials.dtype) * potentials)


def coulomb_matrix(
    system: System,
    graph: Graph | None,
    plan: Plan,
    *,
    widths: Array | None = None,
    exclusions: Exclusions | None = None,
) -> Array:
    """The matrix of :func:`coulomb_operator`, ``[n_atoms, n_atoms]``, eV/e².

    Its rows and columns of masked atoms are zero. Meant for up to some hundred atoms.
    """
    operator = coulomb_operator(system, graph, plan, widths=widths, exclusions=exclusions)
    return jax.vmap(operator)(jnp.eye(system.n_atoms, dtype=system.positions.dtype))


def _pairs(system: System, graph: Graph | None, plan: Plan, widths: Array | None) -> LinearFn:
    """The sum over pairs, screened where there is a reciprocal part."""
    splitting = None if isinstance(plan, DirectPlan) else plan.splitting
    if plan.cutoff is not None:
        if graph is None:
            raise ValueError(
                f"a {plan.method!r} plan with `cutoff` {plan.cutoff} Å needs a `graph` of neighbors"
            )
        edges = graph
        kernels = edge_kernels(system, edges, plan.cutoff, widths, splitting)
        return lambda charges: sum_over_edges(kernels, charges, edges)
    atoms = jnp.arange(system.n_atoms)
    if system.n_atoms <= _LARGEST_STORED_MATRIX:
        matrix = all_pairs_kernel(system.positions, system.mask, widths, atoms)
        return lambda charges: jnp.matmul(matrix, charges, precision="highest")

    def by_rows(charges: Array) -> Array:
        @jax.checkpoint
        def one(atom: Array) -> Array:
            row = all_pairs_kernel(system.positions, system.mask, widths, atom[None])[0]
            return jnp.dot(row, charges, precision="highest")

        return jax.lax.map(one, atoms, batch_size=_ROWS_AT_ONCE)

    return by_rows


def _background(lattice: Lattice, splitting: float, widths: Array | None) -> LinearFn:
    """Minus the mean of the screened interaction over the cell, e/Å.

    For the pair ``i, j`` that is ``pi / V (1 / alpha² - 2 (sigma_i² + sigma_j²))``.
    """
    factor = math.pi / lattice.volume

    def potentials(charges: Array) -> Array:
        net = jnp.sum(charges)
        if widths is None:
            return jnp.broadcast_to(-factor * net / splitting**2, charges.shape)
        variances = jnp.square(widths)
        second = jnp.sum(charges * variances)
        return factor * (2.0 * variances * net + 2.0 * second - net / splitting**2)

    return potentials


def _slab(heights: Array, lattice: Lattice, slab_height: float, widths: Array | None) -> LinearFn:
    """What turns the sum over stacked slabs into that over a single one, e/Å.

    For the pair ``i, j`` that is ``-2 pi / V ((z_i - z_j)² + L² / 6)``; Gaussian charges add
    their variances to the square.

    References:
        Yeh & Berkowitz, J. Chem. Phys. 111, 3155 (1999); Ballenegger, Arnold & Cerdà,
        J. Chem. Phys. 131, 094107 (2009), for net charges.
    """
    factor = 2.0 * math.pi / lattice.volume
    middle = jax.lax.stop_gradient(jnp.mean(heights))
    z = heights - middle
    squares = jnp.square(z) + (0.0 if widths is None else jnp.square(widths))

    def potentials(charges: Array) -> Array:
        net, dipole = jnp.sum(charges), jnp.sum(charges * z)
        second = jnp.sum(charges * squares)
        constant = second + net * slab_height**2 / 6.0
        return factor * (2.0 * z * dipole - squares * net - constant)

    return potentials
