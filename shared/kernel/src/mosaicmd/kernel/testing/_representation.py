"""The same atoms in other arrays: padding, precision, graph layouts, lists, batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mosaicmd.kernel.graphs import host_graph, pad_graph
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.systems import System, pad_system
from mosaicmd.kernel.testing._measure import (
    State,
    cast,
    compare,
    compiled,
    compiled_curvature,
    compiled_energy,
    compiled_gradient,
    compiled_state,
    double,
    evaluate_state,
    in_bucket,
    is_periodic,
    require,
    state_function,
    to_numpy,
)
from mosaicmd.kernel.testing._structures import in_rows, take


def check_atom_energies(
    potential: Potential,
    params: Params,
    system: System,
    *,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> float:
    """One energy per atom; they add up to the total; a masked atom is no atom.

    An atom masked where it stands has exactly zero energy and force, and the others are
    as if it had been deleted.
    """
    params, system = double(params, system)
    graph = in_bucket(host_graph(system, potential.cutoff), system.n_atoms)
    state = evaluate_state(potential, params, system, graph)
    if state.energies.shape != (system.n_atoms,):
        raise AssertionError(
            f"{potential.architecture}: energies have shape {state.energies.shape}, not one "
            f"per atom, {(system.n_atoms,)}"
        )
    energy = compiled_energy(potential.energy)
    total = energy(params, system, graph, system.positions, system.cell)
    name = f"{potential.architecture}: the sum of per-atom energies differs from the total"
    worst = require(name, "energies", state.energies.sum(), total, tolerance)

    chosen = int(np.random.default_rng(seed).choice(np.flatnonzero(system.mask)))
    here = np.arange(system.n_atoms) == chosen
    masked = system._replace(
        mask=np.where(here, False, system.mask),
        species=np.where(here, 0, system.species).astype(np.int32),
    )
    state = evaluate_state(potential, params, masked)
    _require_zero(potential, state, ~np.asarray(masked.mask), "masked atoms")
    keep = np.flatnonzero(~here)
    others = State(state.energies[keep], state.forces[keep], state.stress)
    deleted = pad_system(take(system, keep), system.n_atoms)
    state = evaluate_state(potential, params, deleted)
    expected = State(state.energies[:-1], state.forces[:-1], state.stress)
    what = "masking an atom instead of deleting it"
    return max(worst, compare(potential, what, others, expected, tolerance))


def check_padding(
    potential: Potential, params: Params, system: System, *, tolerance: float = 1e-9
) -> float:
    """Padding atoms and edges change nothing, and leave every gradient finite.

    Compared are energies, forces and stress, and the gradients of energy and squared
    forces with respect to the parameters. Without any real edge, energies are finite and
    forces exactly zero.
    """
    params, system = double(params, system)
    graph, n = host_graph(system, potential.cutoff), system.n_atoms
    program = compiled_gradient(potential.energy, is_periodic(system))
    expected, expected_gradient = to_numpy(program(params, system, graph))
    state = evaluate_state(potential, params, system, graph)  # in a bucket
    worst = compare(potential, "padding the edges", state, expected, tolerance)

    what = "padding atoms and edges"
    atoms = cast(pad_system(system, n + 3), np.float64)
    atoms.positions[n:] = system.positions[0]  # where they would do most harm
    edges = pad_graph(graph, graph.n_edges + 29, n_atoms=n + 3)
    state, gradient = to_numpy(program(params, atoms, edges))
    _require_zero(potential, state, ~atoms.mask, "padding atoms")
    real = State(state.energies[:n], state.forces[:n], state.stress)
    worst = max(worst, compare(potential, what, real, expected, tolerance))
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    references = jax.tree.leaves(expected_gradient)
    for (path, leaf), reference in zip(leaves, references, strict=True):
        name = f"{potential.architecture}: {what} changes the gradient in "
        name += f"params{jax.tree_util.keystr(path)}"
        worst = max(worst, require(name, "gradient", leaf, reference, tolerance))

    alone = in_bucket(dataclasses.replace(graph, mask=np.zeros(graph.n_edges, bool)), n)
    state = evaluate_state(potential, params, system, alone)
    if not (np.isfinite(state.energies).all() and np.all(state.forces == 0.0)):
        raise AssertionError(
            f"{potential.architecture}: without neighbors, atoms have energies of up to "
            f"{np.abs(state.energies).max():.3e} eV and forces of up to "
            f"{np.abs(state.forces).max():.3e} eV/Å, not finite and exactly zero"
        )
    return worst


def check_precision(
    potential: Potential, params: Params, system: System, *, tolerance: float = 1e-4
) -> float:
    """In float32 the potential stays in float32 and agrees with float64."""
    params, system = double(params, system)
    graph = host_graph(system, potential.cutoff)
    expected = evaluate_state(potential, params, system, graph)
    single = (cast(params, np.float32), cast(system, np.float32))
    state = evaluate_state(potential, *single, graph)
    for quantity, values in (("energies", state.energies), ("forces", state.forces)):
        if values.dtype != np.float32:
            raise AssertionError(
                f"{potential.architecture}: {quantity} of a float32 system are {values.dtype}; "
                "cast constants and parameters to the dtype of the distances"
            )
    return compare(potential, "float32", state, expected, tolerance)


def check_graph_layouts(
    potential: Potential,
    params: Params,
    system: System,
    *,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> float:
    """Graphs with ``reverse`` or in rows give the same energies, forces, stress and Hessian."""
    params, system = double(params, system)
    plain = host_graph(system, potential.cutoff)
    reverse = host_graph(system, potential.cutoff, reverse=True)
    direction = np.random.default_rng(seed).normal(size=system.positions.shape)
    program = compiled_curvature(potential.energy, is_periodic(system))
    expected, curvature = to_numpy(program(params, system, plain, direction))
    worst = 0.0
    for what, graph in (
        ("a graph with `reverse`", reverse),
        ("a graph in rows", in_rows(reverse, system.n_atoms)),
    ):
        state, product = to_numpy(program(params, system, graph, direction))
        worst = max(worst, compare(potential, what, state, expected, tolerance))
        name = f"{potential.architecture}: {what} changes the second derivative"
        worst = max(worst, require(name, "curvature", product, curvature, tolerance))
    return worst


def check_longer_list(
    potential: Potential,
    params: Params,
    system: System,
    *,
    tolerance: float = 1e-9,
    skin: float = 1.0,
) -> float:
    """A neighbor list that reaches ``skin`` Å beyond the cutoff changes nothing."""
    params, system = double(params, system)
    expected = evaluate_state(potential, params, system)
    longer = host_graph(system, potential.cutoff + skin)
    state = evaluate_state(potential, params, system, longer)
    return compare(potential, "a list longer than the cutoff", state, expected, tolerance)


def check_batch(
    potential: Potential,
    params: Params,
    system: System,
    *,
    tolerance: float = 1e-9,
    n_systems: int = 3,
    seed: int = 0,
) -> float:
    """``jax.vmap`` over a batch of systems equals a loop over them."""
    params, system = double(params, system)
    rng = np.random.default_rng(seed)
    moves = 0.02 * rng.normal(size=(n_systems, *system.positions.shape))
    systems = [system._replace(positions=system.positions + move) for move in moves]
    graphs = [host_graph(one, potential.cutoff) for one in systems]
    largest = in_bucket(max(graphs, key=lambda graph: graph.n_edges), system.n_atoms)
    graphs = [pad_graph(graph, largest.n_edges, n_atoms=system.n_atoms) for graph in graphs]
    periodic = is_periodic(system)
    one_by_one = compiled_state(potential.energy, periodic)
    states = [one_by_one(params, *pair) for pair in zip(systems, graphs, strict=True)]

    def stack(items: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *items)

    batched = jax.vmap(state_function(potential.energy, periodic), in_axes=(None, 0, 0))
    batch = to_numpy(compiled(batched)(params, stack(systems), stack(graphs)))
    return compare(potential, "a batch", batch, stack(states), tolerance)


def _require_zero(potential: Potential, state: State, where: np.ndarray, what: str) -> None:
    values = np.append(state.energies[where], state.forces[where])
    largest = np.abs(values).max(initial=0.0)
    if largest != 0.0:
        raise AssertionError(
            f"{potential.architecture}: {what} have energies or forces of up to {largest:.3e}, "
            "not exactly zero"
        )
