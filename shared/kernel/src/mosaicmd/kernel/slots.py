"""Slots: several labelled structures joined into the arrays of one, in fixed shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mosaicmd.kernel.examples import Example, Targets
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.systems import System


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("system", "graph", "targets", "owner", "n_atoms", "volume"),
    meta_fields=("labels", "separate"),
)
@dataclasses.dataclass(frozen=True)
class Batch:
    """Slots of joined structures; every leaf has a leading axis of slots.

    In a slot of several structures the cell is the unit matrix and ``graph.shifts`` are
    in Å: an edge knows the image of its sender without knowing a cell. With ``separate``
    each slot is one structure as it is, with its cell, integer shifts and total charge.
    """

    system: System  # [n_slots, n_atoms, ...]
    graph: Graph  # [n_slots, n_edges, ...]
    targets: Targets  # energy and stress [n_slots, n_structures, ...], others by atom
    owner: Any  # [n_slots, n_atoms], int32, structure of an atom; n_structures for padding
    n_atoms: Any  # [n_slots, n_structures], int32, of a structure; 0 for padding
    volume: Any  # [n_slots, n_structures], Å³; 1 without a cell
    labels: tuple[str, ...]  # that the data set has
    separate: bool


@dataclasses.dataclass(frozen=True)
class SlotFormat:
    """What all slots of a data set have in common."""

    n_atoms: int
    n_edges: int
    n_structures: int
    like: Example  # any example: its dtypes, and what stands in an empty slot
    labels: tuple[str, ...]
    scales: Mapping[str, Any]  # of the weights, by label
    separate: bool
    has_charges: bool
    has_total_charge: bool


def join(examples: Sequence[Example], form: SlotFormat) -> Batch:
    """One slot, without leading axis, from as many examples as fit, or from none."""
    n_atoms = np.array([example.system.n_atoms for example in examples], np.int32)
    owner = np.full(form.n_atoms, form.n_structures, np.int32)
    owner[: n_atoms.sum()] = np.repeat(np.arange(len(examples), dtype=np.int32), n_atoms)
    one = form.like.system.cell.dtype.type(1.0)
    n_real = [example.system.mask.sum(dtype=np.int32) for example in examples]
    volumes = [_volume(example.system) for example in examples]
    return Batch(
        system=_join_systems(examples, form),
        graph=_join_graphs(examples, form, n_atoms),
        targets=_join_targets(examples, form),
        owner=owner,
        n_atoms=_stack(n_real, form.n_structures, np.int32(0)),
        volume=_stack(volumes, form.n_structures, one),
        labels=form.labels,
        separate=form.separate,
    )


def _join_systems(examples: Sequence[Example], form: SlotFormat) -> System:
    whole = examples[0].system if examples else form.like.system
    total_charge: Any = None
    if form.separate and form.has_total_charge:
        total_charge = whole.total_charge if examples else np.zeros_like(whole.total_charge)

    def atoms(name: str, fill: float) -> Any:
        arrays = [getattr(example.system, name) for example in examples]
        return _concatenate(arrays, form.n_atoms, fill, getattr(form.like.system, name))

    leaves: dict[str, Any] = {
        "positions": atoms("positions", 0.0),
        "cell": whole.cell if form.separate else np.eye(3, dtype=whole.cell.dtype),
        "species": atoms("species", 0),
        "masses": atoms("masses", 1.0),
        "mask": atoms("mask", False),
        "pbc": whole.pbc if form.separate else np.ones(3, bool),
        "charges": atoms("charges", 0.0) if form.has_charges else None,
        "total_charge": total_charge,
    }
    return System(**leaves)


def _join_graphs(examples: Sequence[Example], form: SlotFormat, n_atoms: np.ndarray) -> Graph:
    like, last = form.like.graph, form.n_atoms - 1
    n_edges = np.array([example.graph.n_edges for example in examples], np.int32)
    first_atom, first_edge = _starts(n_atoms), _starts(n_edges)

    def indices(name: str, starts: np.ndarray, fill: int) -> Any:
        pairs = zip(examples, starts, strict=True)
        arrays = [getattr(example.graph, name) + start for example, start in pairs]
        return _concatenate(arrays, form.n_edges, fill, getattr(like, name))

    def in_angstrom(example: Example) -> Any:
        shifts: Any = example.graph.shifts
        cell = example.system.cell
        return shifts if form.separate else shifts.astype(cell.dtype) @ cell

    reverse = indices("reverse", first_edge, 0)
    reverse[n_edges.sum() :] = np.arange(n_edges.sum(), form.n_edges)
    leaves: dict[str, Any] = {
        "senders": indices("senders", first_atom, last),
        "receivers": indices("receivers", first_atom, last),
        "shifts": _concatenate(
            [in_angstrom(example) for example in examples], form.n_edges, 0, in_angstrom(form.like)
        ),
        "mask": _concatenate([e.graph.mask for e in examples], form.n_edges, False, like.mask),
        "overflow": np.zeros((), bool),
        "reverse": reverse,
    }
    return Graph(**leaves)


def _join_targets(examples: Sequence[Example], form: SlotFormat) -> Targets:
    leaves: dict[str, Any] = {}
    for name in Targets._fields:
        label = name.removesuffix("_weight")
        scale = form.scales[label] if name != label else None
        arrays = [getattr(example.targets, name) for example in examples]
        arrays = arrays if scale is None else [array * scale for array in arrays]
        like = getattr(form.like.targets, name)
        if label in ("energy", "stress"):
            leaves[name] = _stack(arrays, form.n_structures, np.zeros_like(like))
        else:
            leaves[name] = _concatenate(arrays, form.n_atoms, 0.0, like)
    return Targets(**leaves)


def _concatenate(arrays: Sequence[Any], n: int, fill: float, like: Any) -> np.ndarray:
    """Along the first axis, padded to ``n``; shape and type as ``like`` where there are none."""
    joined = np.full((n, *like.shape[1:]), fill, like.dtype)
    if arrays:
        joined[: sum(map(len, arrays))] = np.concatenate(arrays)
    return joined


def _stack(values: Sequence[Any], n: int, fill: Any) -> np.ndarray:
    """Along a new first axis, padded to ``n``."""
    fill = np.asarray(fill)
    stacked = np.tile(fill, (n, *(1,) * fill.ndim))
    if values:
        stacked[: len(values)] = np.stack(values)
    return stacked


def _volume(system: System) -> Any:
    cell: Any = system.cell
    return np.abs(np.linalg.det(cell)) if np.all(system.pbc) else cell.dtype.type(1.0)


def _starts(counts: np.ndarray) -> np.ndarray:
    return (np.cumsum(counts) - counts).astype(np.int32)
