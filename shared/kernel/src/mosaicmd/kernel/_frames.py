"""Frames on the host, without padding, and the geometry that file formats imply."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.systems import System
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

if TYPE_CHECKING:
    import mdtraj

PathLike = str | os.PathLike[str]


class Frames(NamedTuple):
    """Frames on the host in internal units, without padding."""

    positions: np.ndarray  # [n_frames, n_atoms, 3], Å
    cell: np.ndarray | None  # [n_frames, 3, 3], Å; None without a cell
    quantities: dict[str, np.ndarray]  # by name, each [n_frames, ...]
    momenta: np.ndarray | None = None  # [n_frames, n_atoms, 3], u Å/t
    time: np.ndarray | None = None  # [n_frames], t
    step: np.ndarray | None = None  # [n_frames], int64


class Atoms(NamedTuple):
    """What all frames of a file share."""

    system: System  # one structure, without padding
    topology: mdtraj.Topology | None
    kT: float  # eV, nan if unknown
    pressure: float | None  # eV/Å³


def split_frames(
    trajectory: Trajectory,
    steps: np.ndarray | None,
    topology: mdtraj.Topology | PathLike | None,
) -> tuple[Frames, Atoms]:
    """Frames without padding on the host, and what they share."""
    systems = jax.tree.map(np.asarray, trajectory.systems)
    if systems.positions.ndim != 3:
        raise ValueError(
            f"`trajectory` has positions of shape {systems.positions.shape}, not [n_frames, "
            "n_atoms, 3]; take replicas apart by `split_replicas`"
        )
    if steps is not None:
        steps = np.asarray(steps)
        step_spacing(steps, trajectory.n_frames)
        steps = steps.astype(np.int64)
    keep = systems.mask
    momenta = trajectory.momenta
    has_cell = bool(np.any(systems.cell))
    frames = Frames(
        systems.positions[:, keep],
        systems.cell if has_cell else None,
        {
            name: np.asarray(value)
            for name, value in trajectory.quantities.items()
            if name not in ("step", "time")
        },
        None if momenta is None else np.asarray(momenta)[:, keep],
        None if trajectory.time is None else np.asarray(trajectory.time, float),
        steps,
    )
    system = systems._replace(
        positions=systems.positions[0, keep],
        cell=systems.cell[0],
        species=systems.species[keep],
        masses=systems.masses[keep],
        mask=systems.mask[keep],
        charges=None if systems.charges is None else systems.charges[keep],
    )
    found = single_residue(system) if topology is None else load_topology(topology)
    if found is not None and found.n_atoms != len(system.species):
        raise ValueError(
            f"`topology` has {found.n_atoms} atoms, the trajectory {len(system.species)}"
        )
    kT, pressure = trajectory.state_point
    return frames, Atoms(system, found, float(kT), None if pressure is None else float(pressure))


def joined_frames(frames: Frames, atoms: Atoms, dtype: jax.typing.DTypeLike | None) -> Trajectory:
    """The opposite of :func:`_split`."""
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    n_frames, n_atoms = frames.positions.shape[:2]
    system = atoms.system
    if system.n_atoms != n_atoms:
        raise ValueError(f"the frames have {n_atoms} atoms, but the system has {system.n_atoms}")
    cell = np.zeros((n_frames, 3, 3)) if frames.cell is None else frames.cell
    system = jax.tree.map(
        lambda leaf: jnp.asarray(
            leaf, dtype if np.issubdtype(np.asarray(leaf).dtype, np.floating) else None
        ),
        system,
    )
    systems = system._replace(
        positions=jnp.asarray(frames.positions, dtype), cell=jnp.asarray(cell, dtype)
    )
    quantities = {name: jnp.asarray(value) for name, value in frames.quantities.items()}
    if frames.step is not None:
        quantities["step"] = jnp.asarray(frames.step)
    return Trajectory(
        systems,
        quantities,
        StatePoint(atoms.kT, atoms.pressure),
        None if frames.momenta is None else jnp.asarray(frames.momenta, dtype),
        None if frames.time is None else jnp.asarray(frames.time),
    )


def step_spacing(steps: np.ndarray, n_frames: int) -> int | None:
    """Steps between frames, ``None`` for a single one."""
    whole = np.issubdtype(steps.dtype, np.integer)
    gaps = np.unique(np.diff(steps)) if steps.shape == (n_frames,) and whole else np.zeros(2)
    if n_frames < 1 or len(gaps) > 1 or (len(gaps) == 1 and gaps[0] < 1):
        raise ValueError(
            f"`steps` must be {n_frames} integers that grow by one spacing, one for each frame, "
            f"got {few(steps)}"
        )
    return int(gaps[0]) if len(gaps) else None


def few(steps: np.ndarray) -> str:
    """Some of many steps, for messages."""
    listed = steps.reshape(-1).tolist()
    return str(listed) if len(listed) < 6 else f"{listed[:3]} ... {listed[-1]}"


def standard_orientation(frames: Frames) -> Frames:
    """Frames turned so that ``a`` lies along x and ``b`` in the xy plane of every cell.

    Formats of lengths and angles imply this. Frames that have it already stay bit for
    bit. In a left-handed cell the third vector is reversed, which leaves the lattice.
    """
    cell = frames.cell
    if cell is None:
        return frames
    diagonal = np.diagonal(cell, axis1=1, axis2=2)
    if (np.triu(cell, k=1) == 0.0).all() and (diagonal > 0.0).all():
        return frames
    cell = cell.astype(float)
    cell[:, 2] *= np.sign(np.linalg.det(cell))[:, None]
    q, r = np.linalg.qr(np.swapaxes(cell, 1, 2))
    signs = np.sign(np.diagonal(r, axis1=1, axis2=2))
    turn = q * signs[:, None, :]  # row vectors times this lie in the standard frame
    turned = np.swapaxes(r * signs[:, :, None], 1, 2)
    momenta = frames.momenta
    return frames._replace(
        positions=frames.positions @ turn,
        cell=np.tril(turned),
        momenta=None if momenta is None else momenta @ turn,
    )


def lengths_and_angles(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edge lengths (Å) and angles (degrees) of cells ``[n_frames, 3, 3]``, float64."""
    cell = cell.astype(float)
    lengths = np.linalg.norm(cell, axis=2)
    cosines = [
        np.sum(cell[:, i] * cell[:, j], axis=1) / (lengths[:, i] * lengths[:, j])
        for i, j in ((1, 2), (0, 2), (0, 1))
    ]
    return lengths, np.degrees(np.arccos(np.clip(np.stack(cosines, axis=1), -1.0, 1.0)))


def cells(lengths: np.ndarray, angles: np.ndarray) -> np.ndarray | None:
    """Cells in standard orientation, ``[n_frames, 3, 3]``, or ``None`` if all are empty."""
    if not np.any(lengths):
        return None
    lengths, angles = lengths.astype(float), angles.astype(float)
    cosine = np.where(angles == 90.0, 0.0, np.cos(np.radians(angles)))
    alpha, beta, gamma = cosine.T
    sine = np.sqrt(1.0 - gamma**2)
    matrix = np.zeros((len(lengths), 3, 3))
    matrix[:, 0, 0] = 1.0
    matrix[:, 1, 0], matrix[:, 1, 1] = gamma, sine
    matrix[:, 2, 0], matrix[:, 2, 1] = beta, (alpha - beta * gamma) / sine
    matrix[:, 2, 2] = np.sqrt(1.0 - np.sum(matrix[:, 2, :2] ** 2, axis=1))
    return matrix * lengths[:, :, None]


def host_system(*, species: np.ndarray, **fields: Any) -> System:
    """A system of numpy arrays: what atoms are, not where."""
    n_atoms = len(species)
    default: dict[str, Any] = {
        "positions": np.zeros((n_atoms, 3)),
        "cell": np.zeros((3, 3)),
        "mask": np.ones(n_atoms, bool),
        "pbc": np.zeros(3, bool),
    }
    given: dict[str, Any] = default | fields | {"species": species}
    return System(**given)


def system_of_topology(topology: mdtraj.Topology) -> System:
    """Species and masses of a topology; positions are zero.

    Raises:
        ValueError: naming an atom without an element.
    """
    atoms = list(topology.atoms)
    for atom in atoms:
        if atom.element is None or atom.element.atomic_number < 1:
            raise ValueError(
                f"atom {atom.index} ({atom}) of the topology has no element; give a `System` with "
                "labels and masses as `topology`"
            )
    return host_system(
        species=np.array([atom.element.atomic_number for atom in atoms], np.int32),
        masses=np.array([atom.element.mass for atom in atoms], float),
    )


def load_topology(topology: mdtraj.Topology | PathLike) -> mdtraj.Topology:
    """A topology, or the one that mdtraj reads from a file."""
    if isinstance(topology, str | os.PathLike):
        return require("mdtraj").load_topology(str(topology))
    return topology


def system_of_elements(topology: mdtraj.Topology | PathLike, periodic: bool) -> System:
    """:func:`system_of_topology`, periodic in all directions or none."""
    topology = load_topology(topology)
    return system_of_topology(topology)._replace(pbc=jnp.full(3, periodic))


def single_residue(system: Any) -> mdtraj.Topology | None:
    """All atoms in one residue, or ``None`` without mdtraj, which few formats need."""
    try:
        import mdtraj
    except ImportError:
        return None
    topology = mdtraj.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    for number in system.species.tolist():
        try:
            element = mdtraj.element.Element.getByAtomicNumber(number)
            name = element.symbol
        except KeyError:
            element, name = mdtraj.element.virtual, f"B{number}"
        topology.add_atom(name, element, residue)
    return topology


def require(name: str) -> Any:
    """An optional library.

    Raises:
        ImportError: saying how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} is needed for this file; install it by `pip install mosaicmd-kernel[io]`"
        ) from error
