"""Batches of labelled structures in arrays of one shape, so that nothing is compiled twice.

Structures of a batch are joined into a few large disjoint graphs, the *slots*. For equal
shapes, structures are sorted by size and cut into as many strata as a batch has
structures; each batch takes one from every stratum. The total size of a batch then varies
by no more than a single structure does, which bounds the padding, and the batches of an
epoch resemble each other, which lowers the noise of their gradients.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

from mosaicmd.kernel.data_parallel import AXIS
from mosaicmd.kernel.examples import LABELS, Example, labels_present
from mosaicmd.kernel.slots import Batch, SlotFormat, join

T = TypeVar("T")

_EDGES_PER_SLOT_ON_CPU = 4096
"""Slots of about this many edges stay in the cache of a core."""


class Batches:
    """``batches(step)`` for :func:`mosaicmd.kernel.training.train`, steps counted from 1.

    Every epoch visits each structure once, in an order that follows from the seed and the
    number of the epoch, so a resumed run sees the batches that it would have seen. All
    batches have the same shapes. Weights are scaled so that those of each label add up to
    the number of structures: the mean loss over an epoch is that of the whole data set,
    also where only some structures have a label.

    Args:
        examples: from :func:`mosaicmd.kernel.examples.make_examples`.
        batch_size: structures per batch.
        seed: of the order.
        shuffle: ``False`` keeps one order in all epochs, as for validation.
        separate: do not join structures: for potentials that need the cell of a structure
            (reciprocal sums) or know total charges. Every structure is then padded to the
            largest.
        n_slots: into how many slots a batch is divided; by default one on accelerators,
            and on CPUs as many as keep a slot within a cache.
        mesh: from :func:`mosaicmd.kernel.data_parallel.batch_mesh`: slots are spread over
            its devices, and ``n_slots`` becomes a multiple of their number.
        like: batches of other structures whose arrays these are padded to, so that a program
            compiled for the one serves the other; larger structures make larger arrays.

    Raises:
        ValueError: for no examples and for sizes below 1.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        separate: bool = False,
        n_slots: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
        like: Batches | None = None,
    ) -> None:
        if not examples:
            raise ValueError("`examples` is empty: there is nothing to make batches of")
        for name, count in (("batch_size", batch_size), ("n_slots", n_slots)):
            if count is not None and count < 1:
                raise ValueError(f"`{name}` must be at least 1, got {count}")
        self.n_examples = len(examples)
        self.batch_size = min(batch_size, len(examples))
        self.steps_per_epoch = math.ceil(len(examples) / self.batch_size)
        self.seed, self.shuffle, self.separate, self.mesh = seed, shuffle, separate, mesh
        self._examples = examples
        sizes = np.array([example.graph.n_edges for example in examples])
        missing = self.batch_size * self.steps_per_epoch - len(examples)
        by_size = np.concatenate([np.argsort(-sizes, kind="stable"), np.full(missing, -1)])
        self._strata = by_size.reshape(self.batch_size, self.steps_per_epoch)
        self._form, self._slots = self._plan(
            len(like._slots) if n_slots is None and like is not None else n_slots
        )
        if like is not None:
            sizes_of = ("n_atoms", "n_edges", "n_structures")
            larger = {n: max(getattr(self._form, n), getattr(like._form, n)) for n in sizes_of}
            self._form = dataclasses.replace(self._form, **larger)
        self._order = functools.lru_cache(maxsize=2)(self._order_of_epoch)

    def __call__(self, step: int) -> Batch:
        """The batch of a step, on the device or the devices of the mesh."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        order = self._order(epoch if self.shuffle else 0)
        return self._put(self._pack(order[:, index]))

    def epoch(self) -> Iterator[Batch]:
        """All structures once, in the order of the first epoch."""
        return map(self, range(1, self.steps_per_epoch + 1))

    @property
    def padding(self) -> float:
        """Edge slots per edge, on average over an epoch."""
        n_edges = sum(example.graph.n_edges for example in self._examples)
        slots = len(self._slots) * self._form.n_edges * self.steps_per_epoch
        return slots / max(n_edges, 1)

    def _order_of_epoch(self, epoch: int) -> np.ndarray:
        """Index of the structure that a batch takes from a stratum, ``[stratum, batch]``."""
        rng = np.random.default_rng([self.seed, epoch])
        return rng.permuted(self._strata, axis=1)

    def _plan(self, n_slots: int | None) -> tuple[SlotFormat, tuple[tuple[int, ...], ...]]:
        """The format of slots, and which strata go into which slot."""
        examples = self._examples

        def largest(sizes: Sequence[int]) -> np.ndarray:
            padded = np.append(sizes, 0)  # for the index -1
            return padded[self._strata].max(axis=1)

        atoms = largest([example.system.n_atoms for example in examples])
        edges = largest([example.graph.n_edges for example in examples])
        if self.separate:
            n_slots = self.batch_size
        elif n_slots is None:
            on_cpu = jax.default_backend() == "cpu"
            wanted = max(_EDGES_PER_SLOT_ON_CPU, int(edges.max())) if on_cpu else math.inf
            n_slots = max(1, round(edges.sum() / wanted))
        n_devices = 1 if self.mesh is None else self.mesh.size
        n_slots = math.ceil(min(n_slots, self.batch_size) / n_devices) * n_devices
        slots: list[list[int]] = [[] for _ in range(n_slots)]
        load = np.zeros(n_slots)
        for stratum in np.argsort(-edges, kind="stable"):  # the largest to the emptiest
            emptiest = int(np.argmin(load))
            slots[emptiest].append(int(stratum))
            load[emptiest] += edges[stratum] + atoms[stratum]
        form = SlotFormat(
            n_atoms=_round_up(max(sum(atoms[i] for i in slot) for slot in slots) + 1),
            n_edges=_round_up(max(sum(edges[i] for i in slot) for slot in slots) + 1),
            n_structures=max(map(len, slots)),
            like=examples[0],
            labels=labels_present(examples),
            scales=_weight_scales(examples),
            separate=self.separate,
            has_charges=all(e.system.charges is not None for e in examples),
            has_total_charge=all(e.system.total_charge is not None for e in examples),
        )
        return form, tuple(map(tuple, slots))

    def _pack(self, chosen: np.ndarray) -> Batch:
        """Slots of the structures with these indices, one per stratum."""
        slots = [
            join([self._examples[i] for i in chosen[list(slot)] if i >= 0], self._form)
            for slot in self._slots
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *slots)

    def _put(self, batch: Batch) -> Batch:
        if self.mesh is None:
            return jax.device_put(batch)
        sharding = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(AXIS))
        return jax.tree.map(
            lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__),
            batch,
        )


def prefetch(batches: Callable[[int], T], n_ahead: int = 2) -> Callable[[int], T]:
    """The same function of the step, whose next values are computed while others are used.

    Args:
        batches: ``step -> batch``, for example a `Batches`.
        n_ahead: how many steps ahead a second thread works.

    Raises:
        ValueError: for ``n_ahead`` below 1.
    """
    if n_ahead < 1:
        raise ValueError(f"`n_ahead` must be at least 1, got {n_ahead}")
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    pending: dict[int, Future[T]] = {}

    def fetch(step: int) -> T:
        for skipped in pending.keys() - set(range(step, step + n_ahead + 1)):
            pending.pop(skipped).cancel()
        for wanted in range(step, step + n_ahead + 1):
            if wanted not in pending:
                pending[wanted] = worker.submit(batches, wanted)
        return pending.pop(step).result()

    return fetch


def _weight_scales(examples: Sequence[Example]) -> dict[str, Any]:
    """Factors that make the weights of each label add up to the number of structures."""
    totals = {
        label: float(sum(np.sum(e.targets.weight(label), dtype=float) for e in examples))
        for label in LABELS
    }
    real = examples[0].targets.energy.dtype.type
    return {
        label: real(len(examples) / total if total > 0.0 else 0.0)
        for label, total in totals.items()
    }


def _round_up(n: int) -> int:
    return -(-int(n) // 8) * 8
