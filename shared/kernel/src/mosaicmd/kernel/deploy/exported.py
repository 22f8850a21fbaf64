"""Models as compiled programs in one file, which run without the code that made them.

The file is in the safetensors format: eight bytes with the length of a JSON header (little
endian), the header, then data. Its only array, ``program``, is what ``jax.export``
serialises: StableHLO for CPUs and CUDA, weights included, for any number of atoms and
edges. The header's ``__metadata__`` has one entry, ``mosaicmd``: JSON with ``species``,
``cutoff``, ``hops``, ``units``, ``dtype``, ``inputs``, ``outputs`` and ``model``. Nothing
is ever unpickled. All that is needed to run it is jax, numpy and flatbuffers::

    import json, jax, jax.export
    jax.config.update("jax_enable_x64", True)  # for a program in float64
    data = open("silicon.mosaicmd", "rb").read()
    n = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:n])
    start, end = header["program"]["data_offsets"]
    info = json.loads(header["__metadata__"]["mosaicmd"])
    program = jax.export.deserialize(bytearray(data[n + start : n + end]))
    energies, forces, virial = jax.jit(program.call)(
        positions, cell, species_index, senders, receivers, shifts, atom_mask, own_mask, edge_mask
    )

Arguments, with ``n`` atoms and ``e`` edges, floats in the dtype of the program:

=================  ============  =======  =================================================
``positions``      ``[n, 3]``    float    Å
``cell``           ``[3, 3]``    float    Å, rows are lattice vectors; zeros if there is none
``species_index``  ``[n]``       int32    place in the header's ``species``
``senders``        ``[e]``       int32    neighbor at the end of an edge
``receivers``      ``[e]``       int32    centre of an edge, **in ascending order**
``shifts``         ``[e, 3]``    int32    lattice vectors added to the sender
``atom_mask``      ``[n]``       bool     false for atoms that are only padding
``own_mask``       ``[n]``       bool     false for atoms whose energy is not counted
``edge_mask``      ``[e]``       bool     false for edges that are only padding
=================  ============  =======  =================================================

Every pair within the cutoff stands twice, once for either centre; longer edges do no
harm. Padding has receiver ``n - 1``, so that the order holds. Each new size is compiled once:
pad to a few. Results are ``energies`` ``[n]`` (eV, zero where not counted), ``forces``
``[n, 3]`` (eV/Å, of the energy counted) and ``virial`` ``[3, 3]`` (eV), the derivative of
that energy in a symmetric strain: volume times stress, positive under tension; programs
that call the negative of this the virial are not rare.

Without ghost atoms ``own_mask`` is ``atom_mask``. Under domain decomposition it leaves out
the ghosts, whose energies their owners count. The header's ``hops`` says how many edges away
an atom may be and still matter for an energy (found by differentiation; null if there is no
limit): ghosts must reach ``hops`` times the cutoff, and all but the last hop need their edges.

The program takes no ``reverse`` edges. They make forces faster on CPUs, but a program with
ghost atoms (domain decomposition) has edges without an opposite, and a caller that gets
them wrong would get wrong forces without a message.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.files import atomic_write_bytes
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.model_files import load_model, read_model_record
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.systems import System, strained
from mosaicmd.kernel.tensors import pack, unpack

Array = jax.Array
Model = str | os.PathLike[str] | tuple[Potential, Params]

PLATFORMS = ("cpu", "cuda")
_FORMAT = "mosaicmd-program"
_VERSION = 2
_LONGEST = 12  # hops; an energy that reaches as far has no limit
_UNITS = {"energies": "eV", "forces": "eV/angstrom", "virial": "eV", "positions": "angstrom"}
_KINDS = {  # arguments of the program: shape and type
    "positions": ("n, 3", None),
    "cell": ("3, 3", None),
    "species_index": ("n", np.int32),
    "senders": ("e", np.int32),
    "receivers": ("e", np.int32),
    "shifts": ("e, 3", np.int32),
    "atom_mask": ("n", np.bool_),
    "own_mask": ("n", np.bool_),
    "edge_mask": ("e", np.bool_),
}


class ExportError(ValueError):
    """A model that cannot be exported, or a file that is no exported model."""


class Outputs(NamedTuple):
    """What an exported program returns."""

    energies: Array  # [n_atoms], eV
    forces: Array  # [n_atoms, 3], eV/Å
    virial: Array  # [3, 3], eV: volume times stress


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """An exported program and what its header says."""

    info: dict[str, Any]
    program: Callable[..., Any]  # compiled once per size

    @property
    def species(self) -> tuple[int, ...]:
        """What ``species_index`` counts in."""
        return tuple(self.info["species"])

    @property
    def cutoff(self) -> float:
        """Range that edges must cover, Å."""
        return float(self.info["cutoff"])

    @property
    def hops(self) -> int | None:
        """How many edges away an atom may be and matter for an energy; None without a limit."""
        return self.info["hops"]

    def evaluate(self, system: System, graph: Graph) -> Outputs:
        """Results for a system and its graph, which must not be in rows.

        Raises:
            ValueError: for species that the program does not know.
        """
        species, mask = np.asarray(system.species), np.asarray(system.mask)
        known = np.array(self.species)
        if unknown := sorted(set(species[mask].tolist()) - set(self.species)):
            raise ValueError(f"species {unknown} are unknown to the program: {list(known)}")
        order = np.argsort(known)
        index = order[np.searchsorted(known[order], np.where(mask, species, known[0]))]
        dtype = np.dtype(self.info["dtype"])
        return Outputs(
            *self.program(
                np.asarray(system.positions, dtype),
                np.asarray(system.cell, dtype),
                index.astype(np.int32),
                graph.senders,
                graph.receivers,
                graph.shifts,
                mask,
                mask,
                graph.mask,
            )
        )


def export_model(
    model: Model,
    path: str | os.PathLike[str],
    *,
    dtype: jax.typing.DTypeLike = "float32",
    species: Sequence[int] | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Write a model as a program that runs without this package; see the module.

    Args:
        model: a model directory, or ``(potential, params)``.
        path: of the file.
        dtype: of the calculation, float32 or float64.
        species: labels that ``species_index`` will count in; by default all that the
            model knows. A model for any species needs this.
        platforms: what to compile for.

    Raises:
        ExportError: for a model that needs more than the arguments of the program, such as
            charges, or is not differentiable for any number of atoms.
        ImportError: if flatbuffers is missing.
        ValueError: for other dtypes, or species that the model does not know.
    """
    _require_flatbuffers()
    kind = np.dtype(dtype)
    if kind not in (np.dtype("float32"), np.dtype("float64")):
        raise ValueError(f"`dtype` must be float32 or float64, got {kind}")
    with jax.enable_x64(kind == np.dtype("float64")):
        if isinstance(model, tuple):
            potential, params = model
            record: dict[str, Any] = {"architecture": potential.architecture}
        else:
            potential, params = load_model(model, dtype=kind)
            found = read_model_record(model)
            record = {name: found[name] for name in ("architecture", "config", "packages")}
        labels = _labels(potential, species)
        weights = _cast(params, kind)
        program = jax.jit(functools.partial(_program, potential, weights, np.array(labels, "i4")))
        data = _serialised(potential.architecture, program, kind, platforms)
        hops = _hops(program, potential.cutoff, len(labels), kind)
    info = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "species": list(labels),
        "cutoff": float(potential.cutoff),
        "hops": hops,
        "units": _UNITS,
        "dtype": kind.name,
        "platforms": list(platforms),
        "inputs": {
            name: {"shape": shape, "dtype": np.dtype(type_ or kind).name}
            for name, (shape, type_) in _KINDS.items()
        },
        "outputs": {"energies": "n", "forces": "n, 3", "virial": "3, 3"},
        "receivers_ascending": True,
        "calling_convention_version": data.calling_convention_version,
        "jax": jax.__version__,
        "model": record,
    }
    content = {"program": np.frombuffer(data.serialize(vjp_order=0), np.uint8)}
    return atomic_write_bytes(path, pack(content, {"mosaicmd": json.dumps(info)}))


def load_exported(path: str | os.PathLike[str]) -> ExportedModel:
    """The program of a file of :func:`export_model`, ready to be called.

    Raises:
        ExportError: for a file that is missing, damaged or something else, or a program in
            float64 while JAX is in 32-bit mode.
        ImportError: if flatbuffers is missing.
    """
    _require_flatbuffers()
    try:
        arrays, metadata = unpack(Path(path).read_bytes())
        info = json.loads(metadata["mosaicmd"])
        if (found := (info["format"], info["format_version"])) != (_FORMAT, _VERSION):
            raise ExportError(
                f"it says format {found[0]!r}, version {found[1]}, where {_FORMAT!r}, version "
                f"{_VERSION} is known; export the model again, or upgrade mosaicmd-kernel"
            )
        from jax import export

        program = export.deserialize(bytearray(arrays["program"].tobytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is no exported model that can be read: {error}") from error
    if info["dtype"] == "float64" and not jax.config.read("jax_enable_x64"):
        raise ExportError(
            f"{path} computes in float64 but JAX is in 32-bit mode; call "
            'jax.config.update("jax_enable_x64", True) first, or export it in float32'
        )
    return ExportedModel(info, jax.jit(program.call))


def _serialised(architecture: str, program: Any, dtype: np.dtype, platforms: Sequence[str]) -> Any:
    from jax import export

    dimensions = dict(zip("ne", export.symbolic_shape("n, e"), strict=True))

    def shape(text: str) -> tuple[Any, ...]:
        return tuple(dimensions.get(part) or int(part) for part in text.split(", "))

    arguments = [jax.ShapeDtypeStruct(shape(text), kind or dtype) for text, kind in _KINDS.values()]
    try:
        return export.export(program, platforms=list(platforms))(*arguments)
    except Exception as error:  # whatever tracing and lowering raise
        raise ExportError(
            f"the {architecture!r} potential cannot be exported "
            f"({type(error).__name__}: {error}): it must be written for any number of atoms and "
            "edges, and use nothing of a system but positions, cell and species"
        ) from error


def _program(
    potential: Potential,
    params: Params,
    labels: np.ndarray,
    positions: Array,
    cell: Array,
    species_index: Array,
    senders: Array,
    receivers: Array,
    shifts: Array,
    atom_mask: Array,
    own_mask: Array,
    edge_mask: Array,
) -> tuple[Array, Array, Array]:
    system = System(
        positions=positions,
        cell=cell,
        species=jnp.where(atom_mask, jnp.asarray(labels)[species_index], 0),
        masses=jnp.ones_like(positions[:, 0]),
        mask=atom_mask,
        pbc=jnp.ones(3, bool),
    )
    graph = Graph(senders, receivers, shifts, edge_mask, overflow=jnp.zeros((), bool))

    def total(positions: Array, strain: Array) -> tuple[Array, Array]:
        moved = strained(system._replace(positions=positions), strain)
        energies = potential.energy(params, moved, graph).astype(positions.dtype)
        energies = jnp.where(own_mask, energies, 0.0)
        return jnp.sum(energies), energies

    strain = jnp.zeros((3, 3), positions.dtype)
    (slope, virial), energies = jax.grad(total, argnums=(0, 1), has_aux=True)(positions, strain)
    return energies, -slope, virial


def _hops(program: Any, cutoff: float, n_labels: int, dtype: np.dtype) -> int | None:
    """How many edges away the farthest atom is that feels the energy of one.

    That one stands in the middle of a crooked chain with an atom beside each of its own, and
    edges only between successive atoms and to those beside. Short and long edges are tried,
    for terms that end before the cutoff, and all species.
    """
    n = 2 * _LONGEST + 1
    chain, beside = np.arange(n), np.arange(n, 2 * n)
    pairs = np.stack([np.append(chain[:-1], chain), np.append(chain[1:], beside)])
    receivers, senders = np.concatenate([pairs, pairs[::-1]], axis=1).astype(np.int32)
    order = np.argsort(receivers, kind="stable")
    away = np.abs(chain - _LONGEST)
    away = np.append(away, away + 1)
    rng, reach = np.random.default_rng(0), 0
    for length in np.linspace(0.15, 0.9, 6):
        steps = rng.normal(size=(2 * n, 3))
        steps *= length * cutoff / np.linalg.norm(steps, axis=1, keepdims=True)
        positions = np.cumsum(steps[:n], axis=0)
        _, forces, _ = program(
            np.concatenate([positions, positions + steps[n:]]).astype(dtype),
            np.zeros((3, 3), dtype),
            rng.integers(n_labels, size=2 * n).astype(np.int32),
            senders[order],
            receivers[order],
            np.zeros((len(order), 3), np.int32),
            np.ones(2 * n, bool),
            np.arange(2 * n) == _LONGEST,
            np.ones(len(order), bool),
        )
        forces = np.asarray(forces)
        felt = (np.isfinite(forces) & (forces != 0.0)).any(axis=1)
        reach = max(reach, np.max(away, where=felt, initial=0))
    return int(reach) if reach < _LONGEST else None


def _labels(potential: Potential, species: Sequence[int] | None) -> tuple[int, ...]:
    known = potential.species
    if species is None and known is None:
        raise ValueError(
            f"this {potential.architecture!r} potential takes any species; give `species`, the "
            "labels that the program will know, for example species=[14]"
        )
    labels = tuple(map(int, known if species is None else species))  # type: ignore[arg-type]
    if not labels or len(set(labels)) < len(labels) or min(labels) < 1:
        raise ValueError(f"`species` must be different positive labels, got {list(labels)}")
    if known is not None and (unknown := sorted(set(labels) - set(known))):
        raise ValueError(f"`species` {unknown} are unknown to the model, made for {list(known)}")
    return labels


def _cast(params: Params, dtype: np.dtype) -> Params:
    """Weights on the host, so that they enter the program as constants of this type."""

    def one(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        return jnp.asarray(leaf, dtype if np.issubdtype(leaf.dtype, np.floating) else None)

    return jax.tree.map(one, params)


def _require_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "exporting needs flatbuffers: pip install 'mosaicmd-kernel[export]'"
        ) from error
