"""Energies, forces and stress of a potential, and how far two of them lie apart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.graphs import Graph, host_graph, pad_graph
from mosaicmd.kernel.potentials import EnergyFn, Params, Potential, evaluate, total_energy
from mosaicmd.kernel.systems import System, bucket_size

Array = jax.Array

FLOORS = {
    "energies": (1e-3, "eV"),
    "forces": (1e-3, "eV/Å"),
    "stress": (1e-6, "eV/Å³"),
    "curvature": (1e-3, "eV/Å²"),
    "gradient": (1e-3, "(in the units of the loss)"),
}
"""Least scale of a deviation, and unit, per quantity."""


class State(NamedTuple):
    """What two evaluations are compared by."""

    energies: Any  # [n_atoms], eV
    forces: Any  # [n_atoms, 3], eV/Å
    stress: Any | None  # [3, 3], eV/Å³


def evaluate_state(
    potential: Potential, params: Params, system: System, graph: Graph | None = None
) -> State:
    """Per-atom energies, forces and, in a fully periodic system, stress.

    The graph is padded to one of few sizes, so that most checks share a program;
    ``check_padding`` tests that this is allowed.
    """
    graph = host_graph(system, potential.cutoff) if graph is None else graph
    program = compiled_state(potential.energy, is_periodic(system))
    return to_numpy(program(params, system, in_bucket(graph, system.n_atoms)))


def in_bucket(graph: Graph, n_atoms: int) -> Graph:
    """The graph padded to a bucket of coarsely spaced sizes."""
    n_edges = bucket_size(graph.n_edges, growth=2.0, smallest=64)
    return pad_graph(graph, n_edges, n_atoms=n_atoms)


def state_function(energy_fn: EnergyFn, stress: bool) -> Callable[..., State]:
    """``(params, system, graph) -> State``."""

    def state(params: Params, system: System, graph: Graph) -> State:
        evaluation = evaluate(energy_fn, params, system, graph, stress=stress)
        return State(energy_fn(params, system, graph), evaluation.forces, evaluation.stress)

    return state


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit`` that compiles fast: what it builds runs only a few times."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@functools.lru_cache(maxsize=16)
def compiled_state(energy_fn: EnergyFn, stress: bool) -> Callable[..., State]:
    """:func:`state_function`, compiled."""
    return compiled(state_function(energy_fn, stress))


@functools.lru_cache(maxsize=16)
def compiled_energy(energy_fn: EnergyFn) -> Callable[..., Array]:
    """Total energy at given positions and cell, compiled."""

    def energy(params: Params, system: System, graph: Graph, positions: Any, cell: Any) -> Array:
        moved = system._replace(positions=positions, cell=cell)
        return total_energy(energy_fn, params, moved, graph)

    return compiled(energy)


@functools.lru_cache(maxsize=16)
def compiled_gradient(energy_fn: EnergyFn, stress: bool) -> Callable[..., tuple[State, Params]]:
    """State, and the parameter gradient of a loss in energy and forces, compiled."""
    state = state_function(energy_fn, stress)

    def loss(params: Params, system: System, graph: Graph) -> tuple[Array, State]:
        result = state(params, system, graph)
        return jnp.sum(result.energies) + jnp.sum(result.forces**2), result

    def run(params: Params, system: System, graph: Graph) -> tuple[State, Params]:
        gradient, result = jax.grad(loss, has_aux=True)(params, system, graph)
        return result, gradient

    return compiled(run)


@functools.lru_cache(maxsize=16)
def compiled_curvature(energy_fn: EnergyFn, stress: bool) -> Callable[..., tuple[State, Array]]:
    """State, and the derivative of the forces along a direction, compiled."""
    state = state_function(energy_fn, stress)

    def along(
        positions: Any, params: Params, system: System, graph: Graph, direction: Any
    ) -> tuple[Array, State]:
        result = state(params, system._replace(positions=positions), graph)
        return jnp.sum(result.forces * direction), result

    def run(params: Params, system: System, graph: Graph, direction: Any) -> tuple[State, Array]:
        product, result = jax.grad(along, has_aux=True)(
            system.positions, params, system, graph, direction
        )
        return result, product

    return compiled(run)


def double(params: Params, system: System) -> tuple[Params, System]:
    """Both in float64; the system as NumPy arrays, which are cheap to rearrange.

    Raises:
        RuntimeError: if JAX is not in 64-bit mode.
    """
    if not jax.config.read("jax_enable_x64"):
        raise RuntimeError('contract tests need jax.config.update("jax_enable_x64", True)')
    return cast(params, np.float64), cast(system, np.float64)


def cast(tree: Any, dtype: Any) -> Any:
    """NumPy leaves, those that are floating point in ``dtype``."""

    def one(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return leaf.astype(dtype) if np.issubdtype(leaf.dtype, np.floating) else leaf

    return jax.tree.map(one, tree)


def to_numpy(tree: Any) -> Any:
    """The same tree with NumPy leaves."""
    return jax.tree.map(np.asarray, tree)


def is_periodic(system: System) -> bool:
    """Whether the system is periodic in all directions, so that it has a stress."""
    return bool(np.asarray(system.pbc).all())


def compare(
    potential: Potential, what: str, actual: State, expected: State, tolerance: float
) -> float:
    """Largest deviation of energies, forces and stress; see :func:`require`."""
    return max(
        require(
            f"{potential.architecture}: {what} changes {quantity}",
            quantity,
            getattr(actual, quantity),
            getattr(expected, quantity),
            tolerance,
        )
        for quantity in State._fields
        if getattr(expected, quantity) is not None
    )


def require(name: str, quantity: str, actual: Any, expected: Any, tolerance: float) -> float:
    """The deviation between two arrays, or an ``AssertionError`` that starts with ``name``."""
    floor, unit = FLOORS[quantity]
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    difference = np.abs(actual - expected).max(initial=0.0)
    deviation = float(difference / max(np.abs(expected).max(initial=0.0), floor))
    if not deviation <= tolerance:
        raise AssertionError(
            f"{name} by {difference:.3e} {unit}, a deviation of {deviation:.1e} "
            f"(tolerance {tolerance:.1e})"
        )
    return deviation
