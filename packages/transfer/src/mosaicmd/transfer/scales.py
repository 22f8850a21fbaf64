"""Ratios of length and energy between two elements, from tables or from data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.batches import Batches
from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.label_errors import predict
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.slots import Batch
from mosaicmd.kernel.systems import System
from mosaicmd.transfer.rescaled import rescaled

Array = jax.Array


class Scales(NamedTuple):
    """Target over source."""

    length: float
    energy: float


class ScalesFit(NamedTuple):
    """What :func:`fit_scales` found."""

    scales: Scales
    force_rmse: float  # at the best scales, eV/Å
    force_rms: float  # of the labels, eV/Å
    lengths: np.ndarray  # [n], tried
    errors: np.ndarray  # [n], force_rmse at each, eV/Å


def covalent_length_ratio(source: int, target: int) -> float:
    """Ratio of the covalent radii of two elements, by atomic number.

    Raises:
        ValueError: for an element without a tabulated radius.

    References:
        Cordero et al., Dalton Trans. 2832 (2008), as tabulated by ASE.
    """
    from ase.data import covalent_radii

    radii = []
    for name, number in (("source", source), ("target", target)):
        if not 0 < number < len(covalent_radii) or covalent_radii[number] <= 0.2:
            raise ValueError(f"`{name}` {number} is no element with a covalent radius")
        radii.append(float(covalent_radii[number]))
    return radii[1] / radii[0]


def lattice_length_ratio(source: int, target: int) -> float:
    """Ratio of the lattice constants of two elements with the same crystal structure.

    Raises:
        ValueError: where ASE's table of reference states lacks one of them, or they
            crystallise differently.
    """
    from ase.data import reference_states

    states = [reference_states[number] for number in (source, target)]
    for number, state in zip((source, target), states, strict=True):
        if not state or "a" not in state:
            raise ValueError(f"ASE knows no lattice constant of element {number}")
    if states[0]["symmetry"] != states[1]["symmetry"]:
        raise ValueError(
            f"elements {source} ({states[0]['symmetry']}) and {target} "
            f"({states[1]['symmetry']}) crystallise differently; use `covalent_length_ratio` "
            "or `fit_scales`"
        )
    return float(states[1]["a"] / states[0]["a"])


def fit_scales(
    potential: Potential,
    params: Params,
    data: Sequence[tuple[System, Labels]],
    *,
    species: Mapping[int, int] | None = None,
    guess: float = 1.0,
    spread: float = 0.15,
    n_lengths: int = 16,
) -> ScalesFit:
    """The rescaling of a source model that fits forces of the target best.

    For each length the energy ratio follows from linear least squares, so this is a search
    in one number: a scan of ``n_lengths``, then a golden-section search between the
    neighbors of the best.

    Args:
        potential: of the source.
        params: its trained parameters.
        data: structures of the target with forces.
        species: as in :func:`~mosaicmd.transfer.rescaled.rescaled`.
        guess: ratio of lengths to start from, say :func:`covalent_length_ratio`.
        spread: lengths are sought within this relative distance of the guess.
        n_lengths: of the scan, at least 3.

    Raises:
        ValueError: for no forces, or a fit with the sign turned, in which the source model
            says nothing of the target.
    """
    if n_lengths < 3 or not 0.0 < spread < 1.0:
        raise ValueError("`n_lengths` must be at least 3 and `spread` between 0 and 1")
    kept = [(system, labels) for system, labels in data if labels.forces is not None]
    if not kept:
        raise ValueError("`data` has no forces; scales cannot be fitted")
    longest = guess * (1.0 + spread)
    examples = make_examples(kept, longest * potential.cutoff)
    batches = list(Batches(examples, 8, shuffle=False).epoch())
    unit = rescaled(potential, species=species)

    def energies(params: Params, system: System, graph: Graph) -> Array:
        source, length = params
        cell, positions = system.cell / length, system.positions / length
        return unit.energy(source, system._replace(positions=positions, cell=cell), graph)

    @jax.jit
    def products(length: Array, batch: Batch) -> Array:
        def of_slot(slot: Batch) -> Array:
            found = predict(energies, (params, length), slot, ("forces",)).forces
            assert found is not None
            wanted = slot.targets.forces.astype(found.dtype)
            found = jnp.where(slot.targets.forces_weight[:, None] > 0.0, found, 0.0)
            return jnp.stack([jnp.sum(found * found), jnp.sum(found * wanted)])

        return jnp.sum(jax.lax.map(of_slot, batch), axis=0)

    total = sum(float(np.sum(one.targets.forces**2)) for one in examples)
    count = sum(one.targets.forces.size for one in examples)

    def fit(length: float) -> tuple[float, float]:
        sums = np.sum([products(jnp.asarray(length), batch) for batch in batches], axis=0)
        ratio = sums[1] / sums[0]
        return ratio, float(np.sqrt(max(total - ratio * sums[1], 0.0) / count))

    lengths = list(np.linspace(guess * (1.0 - spread), longest, n_lengths))
    errors = [fit(length)[1] for length in lengths]
    best = int(np.clip(np.argmin(errors), 1, n_lengths - 2))
    low, high = lengths[best - 1], lengths[best + 1]
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    inner = [high - golden * (high - low), low + golden * (high - low)]
    values = [fit(length)[1] for length in inner]
    while high - low > 1e-5 * guess:
        if values[0] < values[1]:
            high, inner, values = inner[1], [0.0, inner[0]], [0.0, values[0]]
            inner[0] = high - golden * (high - low)
            values[0] = fit(inner[0])[1]
        else:
            low, inner, values = inner[0], [inner[1], 0.0], [values[1], 0.0]
            inner[1] = low + golden * (high - low)
            values[1] = fit(inner[1])[1]
    length = 0.5 * (low + high)
    ratio, error = fit(length)
    if not ratio > 0.0:
        raise ValueError(
            f"the best energy ratio is {ratio:.3g}: forces of the source model point against those "
            "of the target; check `species` and `guess`"
        )
    return ScalesFit(
        Scales(float(length), float(ratio)),
        error,
        float(np.sqrt(total / count)),
        np.array(lengths),
        np.array(errors),
    )
