"""Stress labels of the wrong sign, unit or order, found by what forces and energies imply.

The check needs no trained model. A potential that is linear in its coefficients (radial
functions per pair of species, and invariants of the moments around every atom) is fitted
to energies and forces in closed form. Its stress follows from the same coefficients by a
strain derivative, so the labels can be compared with it, as they are and as they would be
under every mistake of a list. The one that explains them best is named, if it does so
clearly better than none.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel import units
from mosaicmd.kernel.examples import Example
from mosaicmd.kernel.graphs import Graph, edge_components, host_graph, pad_graph, sum_edges
from mosaicmd.kernel.systems import System, pad_system, strained, volume

Array = jax.Array

_UNITS = {  # what one eV/Å³ is in the units that stresses are published in
    "eV/Å³": 1.0,
    "GPa": 1.0 / units.GPA,
    "kbar": 10.0 / units.GPA,
    "bar": 1.0 / units.BAR,
    "Hartree/Bohr³": units.BOHR**3 / units.HARTREE,
    "Rydberg/Bohr³": 2.0 * units.BOHR**3 / units.HARTREE,
}
_VIRIAL = "eV (a virial)"
_AXES = ("xx", "yy", "zz", "yz", "xz", "xy")
_ORDERS = {  # six components as some codes write them
    "xx, yy, zz, xy, yz, xz (VASP)": ("xx", "yy", "zz", "xy", "yz", "xz"),
    "xx, yy, zz, xy, xz, yz (LAMMPS)": ("xx", "yy", "zz", "xy", "xz", "yz"),
    "xx, yy, zz, xz, xy, yz": ("xx", "yy", "zz", "xz", "xy", "yz"),
    "xx, yy, zz, yz, xy, xz": ("xx", "yy", "zz", "yz", "xy", "xz"),
    "xx, yy, zz, xz, yz, xy": ("xx", "yy", "zz", "xz", "yz", "xy"),
    "xx, xy, xz, yy, yz, zz (rows of a triangle)": ("xx", "xy", "xz", "yy", "yz", "zz"),
}
_AGREES, _BETTER, _AS_GOOD = 0.5, 0.15, 0.05
"""Least concordance of an explanation, its least gain over a simpler one, and how close
another unit must come to be named beside it."""
_FEWEST = 4
"""Structures that a verdict needs."""
_ENERGY_WEIGHT, _RIDGE = 10.0, 1e-4
"""Of an energy, relative to all forces of its structure; and of the columns of the fit. With
these the fit to public data of silicon and germanium predicts their stresses best."""


class StressReport(NamedTuple):
    """What :func:`check_stress` found."""

    problems: tuple[str, ...]  # in words, with remedies; empty if there are none
    concordance: float  # of the labels as they are with what forces imply, at most 1
    slope: float  # labels per predicted stress, by regression
    best_sign: int
    best_unit: str
    best_order: str
    n_structures: int  # that were compared
    conclusive: bool  # whether any explanation agrees with what forces imply


def check_stress(
    examples: Sequence[Example],
    *,
    predicted: Sequence[np.ndarray] | None = None,
    n_structures: int = 40,
    seed: int = 0,
) -> StressReport:
    """Compare stress labels with the stress that energies and forces imply.

    Agreement is measured by the concordance of Lin, which is 1 only where labels and
    prediction are equal, not merely proportional: the mean of that of diagonal and that of
    off-diagonal components. Named are a wrong sign (pressure instead
    of tension), a wrong unit (GPa, kbar, bar, atomic units, or a virial in eV), and an
    order of the six components other than that of ASE, if off-diagonal ones tell.

    Args:
        examples: with forces and stresses; the more different cells and distortions, the
            surer the verdict. Liquids at one density tell little about the pressure, but
            enough about sign and unit.
        predicted: ``[3, 3]`` stress of each example by a model that is trusted, eV/Å³,
            instead of :func:`implied_stress`.
        n_structures: how many are taken, at random.
        seed: of that choice.

    Raises:
        ValueError: if fewer than four structures have a stress, or none has forces to fit.
    """
    every = ["all"] * len(examples)
    reports = check_stress_by_group(
        examples, every, predicted=predicted, n_structures=n_structures, seed=seed
    )
    if not reports:
        n = sum(_has_stress(example) for example in examples)
        raise ValueError(
            f"{n} structures have a `stress`; at least {_FEWEST} are needed to judge it"
        )
    return reports["all"]


def check_stress_by_group(
    examples: Sequence[Example],
    groups: Sequence[str],
    *,
    predicted: Sequence[np.ndarray] | None = None,
    n_structures: int = 20,
    seed: int = 0,
) -> dict[str, StressReport]:
    """:func:`check_stress` of every group, with one fit to structures of all of them.

    Data sets that were put together from several sources can have several conventions,
    which only a look at each of them tells apart.

    Args:
        examples: as there.
        groups: name of the group of every example.
        predicted: as there.
        n_structures: how many are taken of each group, at random.
        seed: of that choice.

    Returns:
        Reports by group, in the order of their names; groups of fewer than four structures
        with a stress are left out.
    """
    rng = np.random.default_rng(seed)
    members: dict[str, list[int]] = {}
    for group in sorted(set(groups)):
        labelled = [i for i, e in enumerate(examples) if groups[i] == group and _has_stress(e)]
        if len(labelled) >= _FEWEST:
            members[group] = sorted(rng.permutation(labelled)[:n_structures].tolist())
    chosen = [i for group in members.values() for i in group]
    if not chosen:
        return {}
    if predicted is None:
        found = implied_stress([examples[i] for i in chosen])
        implied = dict(zip(chosen, found, strict=True))
    else:
        implied = {i: np.asarray(predicted[i], float) for i in chosen}
    reports = {}
    for group, indices in members.items():
        taken = [examples[i] for i in indices]
        given = np.array([example.targets.stress for example in taken], float)
        volumes = np.array([abs(np.linalg.det(e.system.cell.astype(float))) for e in taken])
        expected = np.array([implied[i] for i in indices])
        reports[group] = _diagnose(_six(given), _six(expected), volumes)
    return reports


def _has_stress(example: Example) -> bool:
    return bool(example.targets.stress_weight > 0.0)


def _diagnose(given: np.ndarray, implied: np.ndarray, volumes: np.ndarray) -> StressReport:
    """Compare ``[n, 6]`` labels, as read in the order of ASE, with what they should be."""
    scales = {unit: np.full(len(volumes), 1.0 / factor) for unit, factor in _UNITS.items()}
    scales[_VIRIAL] = 1.0 / volumes
    as_is = ("ASE", 1, "eV/Å³")
    candidates: dict[tuple[str, int, str], float] = {}
    off_diagonal: dict[tuple[str, int, str], float] = {}
    size = np.linalg.norm(implied[:, 3:], axis=1, keepdims=True)
    share = 1.0 / (size + np.median(size) + 1e-12)  # so that no single shear decides an order
    orders = {"ASE": _AXES} | _ORDERS
    for (order, axes), sign, unit in itertools.product(orders.items(), (1, -1), scales):
        column = [axes.index(axis) for axis in _AXES]
        corrected = sign * given[:, column] * scales[unit][:, None]
        diagonal = _concordance(corrected[:, :3], implied[:, :3])
        off_diagonal[order, sign, unit] = _concordance(
            corrected[:, 3:] * share, implied[:, 3:] * share
        )
        candidates[order, sign, unit] = 0.5 * (diagonal + off_diagonal[order, sign, unit])
    best = max(candidates, key=lambda key: candidates[key])
    order, sign, unit = best
    # An order must earn its place: the unpermuted one with the same sign and unit is simpler.
    if off_diagonal[best] - off_diagonal["ASE", sign, unit] < _BETTER:
        best = ("ASE", sign, unit)
    for simpler in _UNITS:  # a virial only where volumes tell it from a unit
        if candidates[best] - candidates[best[0], sign, simpler] < _AS_GOOD:
            best = (best[0], sign, simpler)
            break
    if best[1:] != as_is[1:] and candidates[best] - candidates[as_is] < _BETTER:
        best = as_is
    conclusive = candidates[best] >= _AGREES
    order, sign, unit = best if conclusive else as_is
    slope = float(np.sum(given * implied) / np.sum(implied**2))
    problems = []
    if sign < 0:
        problems.append(
            "`stress` has the wrong sign: positive values compress; multiply it by -1, so that "
            "tension is positive, as in ASE"
        )
    remedies = [
        f"in {other}: divide it by " + (f"{_UNITS[other]:.6g}" if other in _UNITS else "the volume")
        for other in scales
        if unit != "eV/Å³" and candidates[best] - candidates[order, sign, other] < _AS_GOOD
    ]
    if remedies:
        problems.append("`stress` is not in eV/Å³ but " + ", or ".join(remedies))
    if order != "ASE":
        problems.append(
            f"components of `stress` stand in the order {order}; bring them into the order "
            "xx, yy, zz, yz, xz, xy of ASE, or give matrices"
        )
    return StressReport(
        problems=tuple(problems),
        concordance=candidates[as_is],
        slope=slope,
        best_sign=sign,
        best_unit=unit,
        best_order=order,
        n_structures=len(given),
        conclusive=conclusive,
    )


def _concordance(one: np.ndarray, other: np.ndarray) -> float:
    """``2 cov / (var + var + (difference of means)²)``, Lin, Biometrics 45, 255 (1989)."""
    one, other = one.ravel(), other.ravel()
    shift = np.mean(one) - np.mean(other)
    spread = np.var(one) + np.var(other) + shift**2
    covariance = np.mean((one - np.mean(one)) * (other - np.mean(other)))
    return float(2.0 * covariance / spread) if spread > 0.0 else 0.0


def _six(matrices: np.ndarray) -> np.ndarray:
    """``[n, 3, 3]`` as ``[n, 6]`` in the order of ASE."""
    rows, columns = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
    return 0.5 * (matrices[:, rows, columns] + matrices[:, columns, rows])


def implied_stress(examples: Sequence[Example], *, cutoff: float = 5.5) -> np.ndarray:
    """Stress of the linear potential that fits energies and forces best.

    Args:
        examples: with forces, and best with energies; stress labels are not looked at.
        cutoff: of its radial functions, Å.

    Returns:
        ``[n_examples, 3, 3]``, eV/Å³, tension positive.

    Raises:
        ValueError: if no example has forces.
    """
    if not any(np.any(example.targets.forces_weight > 0.0) for example in examples):
        raise ValueError("no structure has `forces`, from which a stress could be predicted")
    with jax.enable_x64(True):
        return _fit_stress(examples, cutoff)


def _fit_stress(examples: Sequence[Example], cutoff: float) -> np.ndarray:
    species = np.unique(np.concatenate([e.system.species[e.system.mask] for e in examples]))
    systems = [_double(example.system) for example in examples]
    graphs = [host_graph(system, cutoff) for system in systems]
    n_atoms = max(system.n_atoms for system in systems)
    n_edges = max(graph.n_edges for graph in graphs)

    @jax.jit
    def derivatives(system: System, graph: Graph) -> tuple[Array, Array, Array]:
        def of(positions: Array, strain: Array) -> Array:
            moved = strained(system._replace(positions=positions), strain)
            return _features(moved, graph, species, cutoff)

        strain = jnp.zeros((3, 3))
        values, pullback = jax.vjp(of, system.positions, strain)
        gradient, virial = jax.lax.map(lambda row: pullback(row), jnp.eye(len(values)))
        return values, gradient, virial / volume(system)

    rows, wanted, stresses = [], [], []
    spread = _spread(examples)
    for example, system, graph in zip(examples, systems, graphs, strict=True):
        padded = pad_system(system, n_atoms), pad_graph(graph, n_edges, n_atoms=n_atoms)
        values, gradient, stress = (np.asarray(leaf) for leaf in derivatives(*padded))
        stresses.append(stress)
        n, targets = system.n_atoms, example.targets
        counts = (example.system.species[:, None] == species[None]).sum(axis=0)
        weighted = np.asarray(targets.forces_weight) > 0.0
        if weighted.any():
            force_rows = -gradient[:, :n][:, weighted].reshape(len(values), -1).T
            constants = np.zeros((len(force_rows), len(species)))
            rows.append(np.hstack([constants, force_rows]) / spread.forces)
            wanted.append(targets.forces[weighted].ravel() / spread.forces)
        if targets.energy_weight > 0.0:
            scale = _ENERGY_WEIGHT * np.sqrt(3.0 * n) / (spread.energy * n)
            rows.append(scale * np.concatenate([counts, values])[None])
            wanted.append(scale * targets.energy[None])
    matrix, right = np.vstack(rows), np.concatenate(wanted)
    scale = np.linalg.norm(matrix, axis=0) + 1e-12
    solution, *_ = np.linalg.lstsq(
        np.vstack([matrix / scale, _RIDGE * np.eye(len(scale))]),
        np.append(right, np.zeros(len(scale))),
        rcond=None,
    )
    coefficients = (solution / scale)[len(species) :]
    return np.einsum("f,nfij->nij", coefficients, np.array(stresses))


class _Spread(NamedTuple):
    energy: float  # eV per atom
    forces: float  # eV/Å


def _spread(examples: Sequence[Example]) -> _Spread:
    """Standard deviations of the labels."""
    energies = [
        float(e.targets.energy) / e.system.n_atoms
        for e in examples
        if e.targets.energy_weight > 0.0
    ]
    forces = np.concatenate([e.targets.forces.ravel().astype(float) for e in examples])
    return _Spread(
        energy=max(float(np.std(energies)) if energies else 0.0, 1e-3),
        forces=max(float(np.std(forces)), 1e-3),
    )


def _features(system: System, graph: Graph, species: np.ndarray, cutoff: float) -> Array:
    """Sums over atoms: radial functions per pair of species, invariants per central species."""
    x, y, z = edge_components(system, graph)
    distances = jnp.sqrt(x * x + y * y + z * z)
    inside = (distances < cutoff) & graph.mask
    distances = jnp.where(inside, distances, cutoff)
    envelope = jnp.where(inside, (1.0 - (distances / cutoff) ** 2) ** 3, 0.0)
    centres = jnp.linspace(0.25, 0.85, 12) * cutoff
    width = 0.09 * cutoff
    radial = jnp.exp(-0.5 * ((distances[:, None] - centres[None]) / width) ** 2)
    radial = radial * envelope[:, None]
    kinds = jnp.asarray(species)
    of_receiver = system.species[graph.receivers][:, None] == kinds[None]
    of_sender = system.species[graph.senders][:, None] == kinds[None]
    features = []
    for a, b in itertools.combinations_with_replacement(range(len(species)), 2):
        pair = of_receiver[:, a] & of_sender[:, b]
        features.append(jnp.sum(jnp.where(pair[:, None], radial, 0.0), axis=0))
    unit = jnp.stack([x, y, z], axis=1) / distances[:, None]
    unit = jnp.where(inside[:, None], unit, 0.0)
    broad = jnp.stack([jnp.exp(-((distances / (s * cutoff)) ** 2)) for s in (0.35, 0.5, 0.8)], 1)
    broad = broad * envelope[:, None]
    tensor = unit[:, :, None] * unit[:, None, :]

    def total(values: Array) -> Array:
        return sum_edges(values, graph, system.n_atoms)

    scalar = total(broad)
    vector = total(broad[:, :, None] * unit[:, None, :])
    matrix = total(broad[:, :, None] * tensor.reshape(-1, 1, 9))
    invariants = []
    for a, b in itertools.combinations_with_replacement(range(3), 2):
        invariants.append(scalar[:, a] * scalar[:, b])
        invariants.append(jnp.sum(vector[:, a] * vector[:, b], axis=-1))
        invariants.append(jnp.sum(matrix[:, a] * matrix[:, b], axis=-1))
    invariants += [jnp.sqrt(1e-6 + scalar[:, a]) - 1e-3 for a in range(3)]
    stacked = jnp.stack(invariants, axis=1)
    centre_is = (system.species[:, None] == kinds[None]) & system.mask[:, None]
    for a in range(len(species)):
        features.append(jnp.sum(jnp.where(centre_is[:, a, None], stacked, 0.0), axis=0))
    return jnp.concatenate(features)


def _double(system: Any) -> System:
    return jax.tree.map(jnp.asarray, system).astype(jnp.float64)
