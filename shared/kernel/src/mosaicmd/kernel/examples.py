"""What force matching learns from: structures with graphs, labels and weights, on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.graphs import Graph, host_graph
from mosaicmd.kernel.systems import System

LABELS = ("energy", "forces", "stress", "charges")
"""The labels that can be learned, in the order in which they are listed everywhere."""


class Targets(NamedTuple):
    """Labels as arrays, with a weight that is 0 where there is no label.

    Energies are less the reference energies. A value without weight is 0, never NaN.
    """

    energy: Any  # [], eV
    forces: Any  # [n_atoms, 3], eV/Å
    stress: Any  # [3, 3], eV/Å³, tension positive
    charges: Any  # [n_atoms], e
    energy_weight: Any  # []
    forces_weight: Any  # [n_atoms]
    stress_weight: Any  # []
    charges_weight: Any  # [n_atoms]

    def weight(self, label: str) -> Any:
        """The weights of one of `LABELS`."""
        return getattr(self, f"{label}_weight")


class Example(NamedTuple):
    """One labelled structure; every leaf is a NumPy array."""

    system: System
    graph: Graph
    targets: Targets


def make_examples(
    data: Sequence[tuple[System, Labels]],
    cutoff: float,
    *,
    reference_energies: Mapping[int, float] | None = None,
    weights: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    atom_weights: Sequence[np.ndarray | None] | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> list[Example]:
    """Examples from labelled structures, with their neighbor lists.

    Args:
        data: as :func:`mosaicmd.kernel.data.read_systems` returns.
        cutoff: of the potential to be trained, Å.
        reference_energies: eV by species (see
            :func:`mosaicmd.kernel.reference_energies.fit_reference_energies`), subtracted
            in float64, before anything is rounded to ``dtype``.
        weights: one per structure, for all of its labels, or such a sequence by label. What
            they add up to has no effect, see :class:`mosaicmd.kernel.batches.Batches`.
        atom_weights: one array ``[n_atoms]`` (or ``None``) per structure, for its forces and
            charges, times ``weights``.
        dtype: of all floating-point numbers; by default that of new JAX arrays.

    Raises:
        ValueError: naming the structure and the label, for no data, labels that are not
            finite or of another shape than their structure asks for, a stress without
            a fully periodic cell, species without reference energy, and negative weights.
    """
    if not data:
        raise ValueError("`data` is empty: there is nothing to learn from")
    dtype = np.dtype(jnp.zeros(()).dtype if dtype is None else dtype)
    by_label = _weights_by_label(weights, len(data))
    if atom_weights is not None and len(atom_weights) != len(data):
        raise ValueError(
            f"`atom_weights` has {len(atom_weights)} entries for {len(data)} structures"
        )
    examples = []
    for index, (system, labels) in enumerate(data):
        name = f"structure {index}"
        per_atom = None if atom_weights is None else atom_weights[index]
        given = {label: by_label[label][index] for label in LABELS}
        examples.append(
            Example(
                system=_on_host(system, dtype),
                graph=_on_host(host_graph(system, cutoff, reverse=True), dtype),
                targets=_targets(name, system, labels, given, per_atom, reference_energies, dtype),
            )
        )
    return examples


def labels_present(examples: Sequence[Example]) -> tuple[str, ...]:
    """Which labels have a weight in at least one example."""
    return tuple(
        label
        for label in LABELS
        if any(np.any(example.targets.weight(label) > 0.0) for example in examples)
    )


def _targets(
    name: str,
    system: System,
    labels: Labels,
    weights: Mapping[str, float],
    atom_weights: np.ndarray | None,
    reference_energies: Mapping[int, float] | None,
    dtype: np.dtype,
) -> Targets:
    real = np.asarray(system.mask)
    n = len(real)
    if labels.stress is not None and not np.asarray(system.pbc).all():
        raise ValueError(f"{name} has a `stress` but is not periodic in three directions")
    per_atom = np.ones(n) if atom_weights is None else np.asarray(atom_weights, float)
    if per_atom.shape != (n,) or not (per_atom >= 0.0).all():
        raise ValueError(
            f"{name}: `atom_weights` must be {n} numbers that are not negative, got {per_atom}"
        )
    shapes = {"energy": (), "forces": (n, 3), "stress": (3, 3), "charges": (n,)}
    values, weight = {}, {}
    for label, shape in shapes.items():
        value = getattr(labels, label)
        array = np.zeros(shape) if value is None else np.asarray(value, float)
        if array.shape != shape:
            raise ValueError(f"{name}: `{label}` must have shape {shape}, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name}: `{label}` is not finite; remove the structure, or give `None` instead"
            )
        values[label] = array
        weight[label] = 0.0 if value is None else weights[label]
    if labels.energy is not None and reference_energies is not None:
        values["energy"] = values["energy"] - _reference(name, system, reference_energies)
    per_atom = np.where(real, per_atom, 0.0)
    return Targets(
        **{label: values[label].astype(dtype) for label in LABELS},
        energy_weight=np.asarray(weight["energy"], dtype),
        forces_weight=(weight["forces"] * per_atom).astype(dtype),
        stress_weight=np.asarray(weight["stress"], dtype),
        charges_weight=(weight["charges"] * per_atom).astype(dtype),
    )


def _reference(name: str, system: System, reference_energies: Mapping[int, float]) -> float:
    species = np.asarray(system.species)[np.asarray(system.mask)]
    kinds, counts = np.unique(species, return_counts=True)
    if missing := sorted(set(kinds.tolist()) - set(reference_energies)):
        raise ValueError(f"{name}: `reference_energies` has no energy for species {missing}")
    return float(sum(n * reference_energies[int(k)] for k, n in zip(kinds, counts, strict=True)))


def _weights_by_label(
    weights: Sequence[float] | Mapping[str, Sequence[float]] | None, n: int
) -> dict[str, np.ndarray]:
    given = weights if isinstance(weights, Mapping) else {}
    if unknown := sorted(set(given) - set(LABELS)):
        raise ValueError(f"`weights` names {unknown}; labels are {list(LABELS)}")
    every = np.ones(n) if weights is None or given else weights
    result = {label: np.asarray(given.get(label, every), float) for label in LABELS}
    for label, array in result.items():
        if array.shape != (n,) or not (np.isfinite(array) & (array >= 0.0)).all():
            raise ValueError(
                f"`weights` of {label} must be {n} finite numbers, one per structure, that are "
                f"not negative; got {array}"
            )
    return result


def _on_host(tree: Any, dtype: np.dtype) -> Any:
    def one(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return leaf.astype(dtype) if np.issubdtype(leaf.dtype, np.floating) else leaf

    return jax.tree.map(one, tree)
