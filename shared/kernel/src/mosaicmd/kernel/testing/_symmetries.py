"""Rotation, translation, permutation, periodic images and extensivity."""

from __future__ import annotations

import itertools

import numpy as np

from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.testing._measure import State, compare, double, evaluate_state
from mosaicmd.kernel.testing._structures import random_orthogonal, repeat, take


def check_rotation(
    potential: Potential,
    params: Params,
    system: System,
    *,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> float:
    """Rotations and reflections leave energies as they are and turn forces and stress."""
    params, system = double(params, system)
    graph = host_graph(system, potential.cutoff)
    expected = evaluate_state(potential, params, system, graph)
    rng, worst = np.random.default_rng(seed), 0.0
    for what, determinant in (("a rotation", 1.0), ("a reflection", -1.0)):
        turn = random_orthogonal(rng, determinant)
        turned = system._replace(positions=system.positions @ turn, cell=system.cell @ turn)
        state = evaluate_state(potential, params, turned, graph)
        back = State(
            state.energies,
            state.forces @ turn.T,
            None if state.stress is None else turn @ state.stress @ turn.T,
        )
        worst = max(worst, compare(potential, what, back, expected, tolerance))
    return worst


def check_translation(
    potential: Potential,
    params: Params,
    system: System,
    *,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> float:
    """A common displacement of all atoms changes nothing."""
    params, system = double(params, system)
    graph = host_graph(system, potential.cutoff)
    shift = np.random.default_rng(seed).normal(scale=3.0, size=(1, 3))
    moved = system._replace(positions=system.positions + shift)
    expected = evaluate_state(potential, params, system, graph)
    state = evaluate_state(potential, params, moved, graph)
    return compare(potential, "a translation", state, expected, tolerance)


def check_permutation(
    potential: Potential,
    params: Params,
    system: System,
    *,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> float:
    """Listing the atoms in another order permutes energies and forces."""
    params, system = double(params, system)
    order = np.random.default_rng(seed).permutation(system.n_atoms)
    expected = evaluate_state(potential, params, system)
    expected = State(expected.energies[order], expected.forces[order], expected.stress)
    state = evaluate_state(potential, params, take(system, order))
    return compare(potential, "a permutation of the atoms", state, expected, tolerance)


def check_periodic_images(
    potential: Potential,
    params: Params,
    system: System,
    *,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> float:
    """Neither the image by which an atom is listed nor the choice of cell vectors matters.

    Raises:
        ValueError: if the system is periodic in no direction.
    """
    params, system = double(params, system)
    periodic = np.flatnonzero(system.pbc)
    if len(periodic) == 0:
        raise ValueError("`system` has no periodic direction; set `pbc`")
    expected = evaluate_state(potential, params, system)
    images = np.zeros((system.n_atoms, 3))
    shape = (system.n_atoms, len(periodic))
    images[:, periodic] = np.random.default_rng(seed).integers(-2, 3, shape)
    moved = system._replace(positions=system.positions + images @ system.cell)
    state = evaluate_state(potential, params, moved)
    worst = compare(potential, "moving atoms by lattice vectors", state, expected, tolerance)

    cell = np.array(system.cell)
    for i, j in itertools.pairwise(periodic):
        cell[i] += cell[j]
    if len(periodic) > 1:
        cell[periodic[-1]] -= cell[periodic[0]]
    state = evaluate_state(potential, params, system._replace(cell=cell))
    what = "choosing other vectors of the same lattice"
    return max(worst, compare(potential, what, state, expected, tolerance))


def check_extensivity(
    potential: Potential, params: Params, system: System, *, tolerance: float = 1e-9
) -> float:
    """Supercells of 2x1x1 and 2x2x2 have the energies, forces and stress of the cell.

    Without periodic directions, a distant second copy of the system takes their place.
    """
    params, system = double(params, system)
    state = evaluate_state(potential, params, system)
    if system.pbc.any():
        choices = {tuple(np.where(system.pbc, n, 1).tolist()) for n in ((2, 1, 1), (2, 2, 2))}
    else:
        choices = {(2, 1, 1)}
    worst = 0.0
    for repeats in sorted(choices - {(1, 1, 1)}):
        n = int(np.prod(repeats))
        expected = State(np.tile(state.energies, n), np.tile(state.forces, (n, 1)), state.stress)
        larger = repeat(system, np.array(repeats), 4.0 * potential.cutoff)
        actual = evaluate_state(potential, params, larger)
        what = f"repeating the system {'x'.join(map(str, repeats))} times"
        worst = max(worst, compare(potential, what, actual, expected, tolerance))
    return worst
