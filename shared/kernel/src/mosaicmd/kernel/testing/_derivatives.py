"""Forces and stress against finite differences, and smoothness across the cutoff."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.graphs import Graph, host_graph
from mosaicmd.kernel.potentials import EnergyFn, Params, Potential, total_energy
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.testing._measure import (
    compiled,
    compiled_energy,
    double,
    evaluate_state,
    in_bucket,
    is_periodic,
    require,
)
from mosaicmd.kernel.testing._structures import clear_of_cutoff, probe_cluster

Array = jax.Array

_CENTRAL_STEP = 5e-5  # Å
_STRAIN_STEP = 1e-5
_N_POINTS = 256  # evaluated at once on the path of the probe


def check_forces(
    potential: Potential,
    params: Params,
    system: System,
    *,
    tolerance: float = 1e-6,
    n_components: int = 24,
    seed: int = 0,
) -> float:
    """Forces are minus the central finite differences of the energy.

    Args:
        potential: what is tested.
        params: its parameters.
        system: any structure.
        tolerance: of the deviation.
        n_components: how many force components to compare, chosen at random.
        seed: of that choice.
    """
    params, system = double(params, system)
    system, graph = clear_of_cutoff(system, potential.cutoff)
    graph = in_bucket(graph, system.n_atoms)
    energy = compiled_energy(potential.energy)
    real = np.flatnonzero(np.repeat(np.asarray(system.mask), 3))
    chosen = np.random.default_rng(seed).permutation(real)[:n_components]
    expected = []
    for component in chosen:
        step = np.zeros(system.n_atoms * 3)
        step[component] = _CENTRAL_STEP
        step = step.reshape(-1, 3)
        ahead = energy(params, system, graph, system.positions + step, system.cell)
        behind = energy(params, system, graph, system.positions - step, system.cell)
        expected.append(float(behind - ahead) / (2.0 * _CENTRAL_STEP))
    forces = evaluate_state(potential, params, system, graph).forces.ravel()[chosen]
    name = f"{potential.architecture}: forces differ from the finite differences of the energy"
    return require(name, "forces", forces, expected, tolerance)


def check_stress(
    potential: Potential, params: Params, system: System, *, tolerance: float = 1e-6
) -> float:
    """The stress is the central finite difference in each of the six strains.

    The strained positions and cells are built here, apart from the code under test. Use a
    triclinic cell that is not relaxed: in others, errors cancel.

    Raises:
        ValueError: if the system is not periodic in three directions.
    """
    params, system = double(params, system)
    if not is_periodic(system):
        raise ValueError("stress needs a `system` that is periodic in three directions")
    system, graph = clear_of_cutoff(system, potential.cutoff)
    graph = in_bucket(graph, system.n_atoms)
    energy = compiled_energy(potential.energy)

    def strained_energy(strain: np.ndarray) -> float:
        deformation = np.eye(3) + strain
        positions, cell = system.positions @ deformation, system.cell @ deformation
        return float(energy(params, system, graph, positions, cell))

    expected = np.empty((3, 3))
    for i, j in zip(*np.triu_indices(3), strict=True):
        strain = np.zeros((3, 3))
        strain[i, j] = strain[j, i] = _STRAIN_STEP
        slope = (strained_energy(strain) - strained_energy(-strain)) / (2.0 * _STRAIN_STEP)
        expected[i, j] = expected[j, i] = slope if i == j else 0.5 * slope
    expected /= abs(np.linalg.det(system.cell))
    stress = evaluate_state(potential, params, system, graph).stress
    name = f"{potential.architecture}: stress differs from the finite differences in the strain"
    return require(name, "stress", stress, expected, tolerance)


def check_smoothness(
    potential: Potential,
    params: Params,
    system: System,
    *,
    order: int = 2,
    tolerance: float = 1e-6,
    max_pairs: int = 4,
) -> float:
    """Energy and derivatives have no jump while a neighbor leaves through the cutoff.

    A probe atom recedes from a centre, which has two more neighbors, from 0.7 to 1.05
    times the cutoff. Where second differences on a grid of this path are largest, and
    around the cutoff, finer grids follow until only a jump can be left of them. Deviations
    are relative to the largest value on the path; jumps above about 1e-4 of it are found
    wherever they are, smaller ones at the cutoff.

    Args:
        potential: what is tested.
        params: its parameters.
        system: gives the species (and charges) of centre, probe and neighbors.
        order: the highest derivative that has to be continuous: 2 by default, 1 for a
            potential with continuous forces, 0 for a continuous energy, -1 for none (then
            nothing is checked).
        tolerance: of the deviation.
        max_pairs: how many ordered pairs of species to try as centre and probe.
    """
    params, system = double(params, system)
    kinds = np.unique(system.species[system.mask])
    pairs = [(a, b) for a in kinds for b in kinds][:max_pairs]
    path, cutoff = _probe_path(potential.energy), potential.cutoff
    worst = 0.0
    for center, probe in pairs if order >= 0 else ():
        cluster = probe_cluster(system, [center, probe, kinds[-1], kinds[0]], cutoff)
        graph = host_graph(cluster, 4.0 * cutoff)
        along = functools.partial(path, params, cluster, graph)
        for k in range(order + 1):
            jump, distance, scale = _largest_jump(along, k, cutoff)
            deviation = jump / scale if scale > 0.0 else jump
            if not deviation <= tolerance:
                raise AssertionError(
                    f"{potential.architecture}: derivative {k} of the energy between species "
                    f"{center} and {probe} jumps by {jump:.3e} eV/Å^{k} at {distance:.6f} Å "
                    f"(cutoff {cutoff} Å), a deviation of {deviation:.1e} (tolerance "
                    f"{tolerance:.1e}); make it smoother, or test it with order={k - 1}"
                )
            worst = max(worst, deviation)
    return worst


def _largest_jump(
    along: Callable[[np.ndarray], Array], k: int, cutoff: float
) -> tuple[float, float, float]:
    """Jump of derivative ``k``, the distance where it is, and the largest value on the path."""

    def derivative(x: np.ndarray) -> np.ndarray:
        return np.asarray(along(x.ravel())[k]).reshape(x.shape)

    grid = np.linspace(0.7, 1.05, 2 * _N_POINTS) * cutoff
    values = np.concatenate([derivative(part) for part in np.split(grid, 2)])
    scale = float(np.abs(values - values[-1]).max())
    jumps = np.abs(np.diff(values, n=2))
    at, step = int(np.argmax(jumps)), grid[1] - grid[0]  # argmax finds NaN first
    windows = np.array([[grid[at], grid[at + 2]], [cutoff - step, cutoff + step]])
    for _ in range(3):
        x = np.linspace(windows[:, 0], windows[:, 1], _N_POINTS // 2, axis=1)
        jumps = np.abs(np.diff(derivative(x), n=2))
        at = np.argmax(jumps, axis=1)
        windows = np.take_along_axis(x, np.stack([at, at + 2], axis=1), axis=1)
    worst = int(np.argmax(jumps.max(axis=1)))
    return float(jumps[worst].max()), float(windows[worst, 0]), scale


@functools.lru_cache(maxsize=16)
def _probe_path(energy_fn: EnergyFn) -> Callable[..., Array]:
    """Energy and two derivatives in the distance of the probe, ``[n] -> [3, n]``, compiled."""

    def energy(x: Array, params: Params, cluster: System, graph: Graph) -> Array:
        moved = cluster._replace(positions=cluster.positions.at[1, 0].set(x))
        return total_energy(energy_fn, params, moved, graph)

    def slope(x: Array, *args: object) -> tuple[Array, Array]:
        value, first = jax.value_and_grad(energy)(x, *args)
        return first, value

    def derivatives(x: Array, *args: object) -> Array:
        (first, value), second = jax.value_and_grad(slope, has_aux=True)(x, *args)
        return jnp.stack([value, first, second])

    def run(params: Params, cluster: System, graph: Graph, x: Array) -> Array:
        rows = jax.vmap(derivatives, in_axes=(0, None, None, None))(x, params, cluster, graph)
        return rows.T

    return compiled(run)
