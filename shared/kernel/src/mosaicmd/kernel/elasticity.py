"""Strain derivatives of an energy, and elastic constants and equilibrium at T = 0.

Derivatives are taken in the Lagrangian strain ``eta = (F^T F - 1) / 2`` of a pure stretch
``F = 1 + eta - eta^2 / 2 + ...``. Those of second order in another measure of strain differ
by the stress; in this one they are tensors that rotations leave alone, from which
:func:`mosaicmd.kernel.elastic_tensors.birch_coefficients` gives what explicit strain measures.
Voigt notation as there. Energy functions must allow forward over reverse differentiation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.elastic_tensors import birch_coefficients, strain_matrix
from mosaicmd.kernel.graphs import Graph, host_graph, pad_graph
from mosaicmd.kernel.potentials import EnergyFn, Params, total_energy
from mosaicmd.kernel.systems import System, strained, volume
from mosaicmd.kernel.units import GPA

Array = jax.Array
Kind = Literal["birch", "lagrangian"]

_LARGEST_MOVE = 0.1  # Å, per Newton step
_COLUMNS_AT_ONCE = 30  # of a Hessian
_SOFTEST_MODE = 1e-4  # relative to the stiffest: softer ones are taken to be this stiff


class StrainDerivatives(NamedTuple):
    """Of the potential energy at fixed fractional coordinates, per volume, eV/Å³."""

    stress: Array  # [6], tension positive
    stiffness: Array  # [6, 6], second derivative in the Lagrangian strain: the Born term


class AthermalElasticity(NamedTuple):
    """Elastic constants at T = 0."""

    clamped_gpa: Array  # [6, 6], atoms follow the strain
    relaxed_gpa: Array  # [6, 6], atoms move to their minimum under strain
    stress_gpa: Array  # [6], tension positive
    residual_force: Array  # [], eV/Å, largest component; the atoms should be at rest


@functools.partial(jax.jit, static_argnames="energy_fn")
def strain_derivatives(
    energy_fn: EnergyFn, params: Params, system: System, graph: Graph
) -> StrainDerivatives:
    """First and second derivative of the energy in a homogeneous strain, per volume.

    Six forward derivatives of one reverse derivative; differentiable once more in the
    parameters.

    Args:
        energy_fn: per-atom energy function.
        params: its parameters.
        system: one structure, periodic in three directions, at rest or not.
        graph: neighbors within at least the cutoff of the potential.
    """
    energy = _energy_of_strain(energy_fn, params, system, graph)

    def slope(strain: Array) -> Array:
        return jax.grad(energy, argnums=1)(jnp.zeros_like(system.positions), strain)

    # One at a time: on a CPU faster than side by side, and a sixth of the memory.
    unstrained = jnp.zeros(6, system.positions.dtype)
    stresses, stiffness = jax.lax.map(
        lambda unit: jax.jvp(slope, (unstrained,), (unit,)), jnp.eye(6, dtype=unstrained.dtype)
    )
    stress = stresses[0]
    return StrainDerivatives(stress / volume(system), stiffness / volume(system))


@functools.partial(jax.jit, static_argnames=("energy_fn", "kind"))
def athermal_elasticity(
    energy_fn: EnergyFn, params: Params, system: System, graph: Graph, *, kind: Kind = "birch"
) -> AthermalElasticity:
    """Elastic constants of a structure at rest, from its Hessian.

    With displacements ``u`` and strain ``e``, ``C = A - L^T H^-1 L``, where ``A`` is the
    second derivative in ``e`` alone, ``L`` the mixed one and ``H`` that in ``u`` without the
    three translations. The Hessian is dense: for cells of up to some hundred atoms. The
    derivative in the parameters is that at fixed positions; use :func:`follow_minimum` on
    the system for the one along the minimum.

    Args:
        energy_fn: per-atom energy function.
        params: its parameters.
        system: one structure at a minimum of its energy in the positions; any stress.
        graph: neighbors within at least the cutoff of the potential.
        kind: ``"birch"``, the derivative of the Cauchy stress in the strain; or
            ``"lagrangian"``, the second derivative of the energy in the Lagrangian strain.
            They are equal where the stress vanishes.

    Raises:
        ValueError: for another ``kind``.

    References:
        Born & Huang, Dynamical Theory of Crystal Lattices (1954), secs. 11-13; Lutsko,
        J. Appl. Phys. 65, 2991 (1989).
    """
    check_kind(kind)
    gradient, hessian = _derivatives(energy_fn, params, system, graph)
    n = gradient.size - 6
    cell_volume = volume(system)
    internal = hessian[:n, :n] + _held_still(system, hessian[:n, :n])
    mixed = hessian[:n, n:]
    softening = jnp.matmul(mixed.T, jnp.linalg.solve(internal, mixed), precision="highest")
    clamped, stress = hessian[n:, n:] / cell_volume, gradient[n:] / cell_volume
    relaxed = clamped - softening / cell_volume
    if kind == "birch":
        clamped, relaxed = (birch_coefficients(c, stress) for c in (clamped, relaxed))
    return AthermalElasticity(
        clamped / GPA, relaxed / GPA, stress / GPA, jnp.max(jnp.abs(gradient[:n]))
    )


def relaxed_structure(
    energy_fn: EnergyFn,
    params: Params,
    system: System,
    *,
    cutoff: float,
    pressure: float = 0.0,
    relax_cell: bool = True,
    tolerance: float = 1e-8,
    max_steps: int = 200,
) -> System:
    """The nearest minimum of ``U + P V`` in positions and cell, by Newton's method.

    Exact enough for Hessians, for cells of up to some hundred atoms; what is larger, or far
    from its minimum, is better left to :func:`mosaicmd.kernel.minimize.minimize`. Directions
    of negative curvature are descended, soft ones not overstepped: no atom moves farther
    than 0.1 Å per step. Runs on the host; :func:`follow_minimum` makes the result
    differentiable.

    Args:
        energy_fn: per-atom energy function.
        params: its parameters.
        system: a structure near the minimum; the cell keeps its orientation.
        cutoff: of the energy function, Å.
        pressure: eV/Å³.
        relax_cell: whether the cell relaxes too, with all six strains.
        tolerance: of the largest force, eV/Å, and of the stress times area, likewise.
        max_steps: Newton steps.

    Raises:
        RuntimeError: if the gradient is not below the tolerance after ``max_steps``.
    """
    n = 3 * system.n_atoms
    length = float(volume(system)) ** (1.0 / 3.0)  # makes strains displacements
    scale = np.concatenate([np.ones(n), np.full(6, 1.0 / length)])
    active = n + 6 if relax_cell else n
    largest = np.inf
    for _ in range(max_steps):
        graph = pad_graph(host_graph(system, cutoff), n_atoms=system.n_atoms)
        gradient, hessian = (
            np.asarray(part, float)
            for part in _enthalpy_derivatives(energy_fn, params, system, graph, pressure)
        )
        gradient = (gradient * scale)[:active]
        largest = np.abs(gradient).max()
        if largest < tolerance:
            return system
        curvature, modes = np.linalg.eigh((hessian * np.outer(scale, scale))[:active, :active])
        curvature = np.maximum(np.abs(curvature), _SOFTEST_MODE * np.abs(curvature).max())
        move = np.zeros(n + 6)
        move[:active] = -modes @ (modes.T @ gradient / curvature)
        move *= min(1.0, _LARGEST_MOVE / np.abs(move).max())
        system = _moved(system, jnp.asarray(move * scale, system.positions.dtype))
    raise RuntimeError(
        f"no minimum after {max_steps} Newton steps: the largest force is {largest:.3g} eV/Å, "
        f"`tolerance` {tolerance:.3g}; start nearer to it, allow more steps, or use float64"
    )


@functools.partial(jax.jit, static_argnames=("energy_fn", "relax_cell"))
def follow_minimum(
    energy_fn: EnergyFn,
    params: Params,
    system: System,
    graph: Graph,
    *,
    pressure: float | Array = 0.0,
    relax_cell: bool = True,
) -> System:
    """A relaxed structure as a function of the parameters: same values, and a derivative.

    By the implicit function theorem the minimum moves by ``-H^-1 d(gradient)``, which one
    Newton step that holds ``H`` fixed reproduces. First derivatives of whatever is computed
    from the result are exact, higher ones are not.

    Args:
        energy_fn: per-atom energy function.
        params: its parameters, which may be traced.
        system: the minimum for them, from :func:`relaxed_structure`.
        graph: its neighbors, with no pair just beyond the cutoff.
        pressure: that the minimum belongs to, eV/Å³; may be traced.
        relax_cell: whether the cell relaxed too.
    """
    n = 3 * system.n_atoms
    gradient, hessian = _enthalpy_derivatives(
        energy_fn, params, jax.lax.stop_gradient(system), graph, pressure
    )
    hessian = jax.lax.stop_gradient(hessian)
    hessian = hessian.at[:n, :n].add(_held_still(system, hessian[:n, :n]))
    active = n + 6 if relax_cell else n
    step = -jnp.linalg.solve(hessian[:active, :active], gradient[:active])
    return _moved(jax.lax.stop_gradient(system), jnp.pad(step, (0, n + 6 - active)))


def check_kind(kind: str) -> None:
    """Raise a ``ValueError`` unless this is a kind of elastic constants."""
    if kind not in ("birch", "lagrangian"):
        raise ValueError(f"`kind` must be 'birch' or 'lagrangian', got {kind!r}")


def _energy_of_strain(
    energy_fn: EnergyFn, params: Params, system: System, graph: Graph
) -> Callable[[Array, Array], Array]:
    """The energy under displacements and a Lagrangian strain that then carries all along."""
    graph = dataclasses.replace(graph, reverse=None)  # which refuses forward derivatives

    def energy(displacement: Array, strain: Array) -> Array:
        eta = strain_matrix(strain)
        stretch = eta - 0.5 * jnp.matmul(eta, eta, precision="highest")
        moved = system._replace(positions=system.positions + displacement)
        return total_energy(energy_fn, params, strained(moved, stretch), graph)

    return energy


def _derivatives(
    energy_fn: EnergyFn, params: Params, system: System, graph: Graph
) -> tuple[Array, Array]:
    """Gradient ``[3 n_atoms + 6]`` and Hessian in displacements and Lagrangian strain."""
    energy = _energy_of_strain(energy_fn, params, system, graph)
    n = 3 * system.n_atoms

    def of_all(x: Array) -> Array:
        return energy(x[:n].reshape(-1, 3), x[n:])

    x = jnp.zeros(n + 6, system.positions.dtype)
    slope, along = jax.linearize(jax.grad(of_all), x)
    columns = jax.lax.map(along, jnp.eye(n + 6, dtype=x.dtype), batch_size=_COLUMNS_AT_ONCE)
    return slope, 0.5 * (columns + columns.T)


@functools.partial(jax.jit, static_argnums=0)
def _enthalpy_derivatives(
    energy_fn: EnergyFn, params: Any, system: System, graph: Graph, pressure: float | Array
) -> tuple[Array, Array]:
    """As :func:`_derivatives`, of ``U + P V``."""
    gradient, hessian = _derivatives(energy_fn, params, system, graph)
    n = gradient.size - 6

    def work(strain: Array) -> Array:
        eta = strain_matrix(strain)
        return pressure * volume(strained(system, eta - 0.5 * eta @ eta))

    zero = jnp.zeros(6, gradient.dtype)
    return (
        gradient.at[n:].add(jax.grad(work)(zero)),
        hessian.at[n:, n:].add(jax.hessian(work)(zero)),
    )


def _held_still(system: System, hessian: Array) -> Array:
    """What makes the Hessian invertible: stiffness for translations and for masked atoms."""
    mask = jnp.repeat(system.mask, 3)
    stiffness = jnp.maximum(jnp.max(jnp.abs(jnp.diagonal(hessian))), 1.0)  # one atom has none
    along = jnp.tile(jnp.eye(3, dtype=hessian.dtype), (system.n_atoms, 1)) * mask[:, None]
    translations = along @ along.T / jnp.sum(system.mask)
    return stiffness * (translations + jnp.diag(1.0 - mask.astype(hessian.dtype)))


def _moved(system: System, move: Array) -> System:
    """The system displaced, then strained: ``move`` holds ``[3 n_atoms + 6]``."""
    n = 3 * system.n_atoms
    positions = system.positions + move[:n].reshape(-1, 3)
    eta = strain_matrix(move[n:])
    return strained(system._replace(positions=positions), eta - 0.5 * eta @ eta)
