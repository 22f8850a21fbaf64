"""Frames appended to and read from DCD, XTC, HDF5 and ASE files, through any stream."""

from __future__ import annotations

import io
import json
import math
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mosaicmd.kernel import units
from mosaicmd.kernel._frames import (
    Atoms,
    Frames,
    cells,
    host_system,
    lengths_and_angles,
    require,
    standard_orientation,
    system_of_topology,
)
from mosaicmd.kernel.systems import from_ase, to_ase

if TYPE_CHECKING:
    import mdtraj

AKMA = 1.0 / math.sqrt(units.KCAL_PER_MOL)
"""The time unit of DCD files, ``Å sqrt(u mol/kcal)``, in t."""

_LAST_XTC_STEP = 2**31 - 1
_HDF5_CHUNK_BYTES = 2**13
"""Small, as the last chunk of every array is written anew with each piece."""

_OURS = "mosaicmd"
_OF_ATOMS = ("species", "masses", "pbc", "charges", "total_charge")


class FileFormat(NamedTuple):
    """How frames get into a file and out of it."""

    append: Callable[[io.RawIOBase, int, Frames, Atoms], None]
    """``(stream, frames already there, frames, atoms)``."""
    read: Callable[[Path], tuple[Frames, Atoms | None]]


# DCD (CHARMM, NAMD): Å, float32


def _append_dcd(stream: io.RawIOBase, n_before: int, frames: Frames, atoms: Atoms) -> None:
    mdtraj = require("mdtraj")
    frames = standard_orientation(frames)

    def write(path: str) -> None:
        arrays = [frames.positions]
        if frames.cell is not None:
            arrays += list(lengths_and_angles(frames.cell))
        with mdtraj.formats.DCDTrajectoryFile(path, "w") as file:
            file.write(*(np.asarray(array, np.float32) for array in arrays))

    data = _written(write, ".dcd")
    header = _dcd_header_length(data)
    stream.seek(0, io.SEEK_END)
    stream.write(data if n_before == 0 else data[header:])
    n_frames = n_before + len(frames.positions)
    if n_before == 0:
        first = 0 if frames.step is None else int(frames.step[0])
    else:
        first = int(_dcd_numbers(stream)[1])
    # NSET, ISTART, NSAVC, NSTEP; then the time step. A file of one frame has no interval.
    every = 1
    if frames.step is not None and n_frames > 1:
        every = (int(frames.step[-1]) - first) // (n_frames - 1)
    stream.seek(8)
    stream.write(struct.pack("<4i", n_frames, first, every, first + (n_frames - 1) * every))
    if frames.time is not None and frames.step is not None and frames.step[-1] > 0:
        stream.seek(44)
        stream.write(struct.pack("<f", frames.time[-1] / frames.step[-1] / AKMA))


def _dcd_header_length(data: bytes) -> int:
    """Three Fortran records: numbers, titles and the number of atoms."""
    at = 0
    for _ in range(3):
        at += struct.unpack_from("<i", data, at)[0] + 8
    return at


def _dcd_numbers(stream: io.RawIOBase) -> tuple:
    """Frames, first step, steps between frames, and the time step (AKMA)."""
    stream.seek(0)
    header = stream.read(48) or b""
    return (*struct.unpack_from("<3i", header, 8), struct.unpack_from("<f", header, 44)[0])


def _read_dcd(path: Path) -> tuple[Frames, None]:
    with require("mdtraj").formats.DCDTrajectoryFile(str(path)) as file:
        positions, lengths, angles = file.read()
    with open(path, "rb", buffering=0) as stream:
        _, first, every, timestep = _dcd_numbers(stream)
    step = first + every * np.arange(len(positions))
    cell = None if lengths is None else cells(lengths, angles)
    return Frames(positions, cell, {}, time=step * (timestep * AKMA), step=step), None


# XTC (GROMACS): nm, rounded to 0.001 nm


def _append_xtc(stream: io.RawIOBase, n_before: int, frames: Frames, atoms: Atoms) -> None:
    mdtraj = require("mdtraj")
    frames = standard_orientation(frames)
    n_frames = len(frames.positions)
    step = n_before + np.arange(n_frames) if frames.step is None else frames.step
    if step[-1] > _LAST_XTC_STEP:
        raise ValueError(f"step {step[-1]} does not fit into an XTC file; write .h5 or .traj")
    cell = np.zeros((n_frames, 3, 3)) if frames.cell is None else frames.cell
    time = np.zeros(n_frames) if frames.time is None else frames.time

    def write(path: str) -> None:
        with mdtraj.formats.XTCTrajectoryFile(path, "w") as file:
            file.write(
                np.asarray(frames.positions / units.NANOMETER, np.float32),
                time=np.asarray(time / units.PICOSECOND, np.float32),
                step=np.asarray(step, np.int32),
                box=np.asarray(cell / units.NANOMETER, np.float32),
            )

    stream.seek(0, io.SEEK_END)
    stream.write(_written(write, ".xtc"))


def _read_xtc(path: Path) -> tuple[Frames, None]:
    with require("mdtraj").formats.XTCTrajectoryFile(str(path)) as file:
        positions, time, step, box = file.read()
    cell = box.astype(float) * units.NANOMETER if np.any(box) else None
    positions = positions.astype(float) * units.NANOMETER
    time = time.astype(float) * units.PICOSECOND
    return Frames(positions, cell, {}, time=time, step=step.astype(np.int64)), None


# HDF5 in the layout of mdtraj: nm, ps and kJ/mol in float32; what it lacks in a group of ours


def _append_hdf5(stream: io.RawIOBase, n_before: int, frames: Frames, atoms: Atoms) -> None:
    h5py = require("h5py")
    frames = standard_orientation(frames)
    given = {
        "coordinates": (frames.positions, units.NANOMETER, "nanometers"),
        "time": (frames.time, units.PICOSECOND, "picoseconds"),
        "kineticEnergy": (
            frames.quantities.get("kinetic_energy"),
            units.KJ_PER_MOL,
            "kilojoules_per_mole",
        ),
        "potentialEnergy": (
            frames.quantities.get("energy"),
            units.KJ_PER_MOL,
            "kilojoules_per_mole",
        ),
        "temperature": (frames.quantities.get("temperature_kelvin"), 1.0, "kelvin"),
    }
    if frames.cell is not None:
        lengths, angles = lengths_and_angles(frames.cell)
        given["cell_lengths"] = (lengths, units.NANOMETER, "nanometers")
        given["cell_angles"] = (angles, 1.0, "degrees")
    if frames.momenta is not None:
        masses = np.asarray(atoms.system.masses, float)[None, :, None]
        unit = units.NANOMETER / units.PICOSECOND
        given["velocities"] = (frames.momenta / masses, unit, "nanometers/picosecond")
    ours = {f"{_OURS}/quantities/{name}": value for name, value in frames.quantities.items()}
    ours |= {} if frames.step is None else {f"{_OURS}/step": frames.step}
    ours |= {} if frames.time is None else {f"{_OURS}/time": frames.time}
    with h5py.File(stream, "w" if n_before == 0 else "r+") as file:
        if n_before == 0:
            _begin_hdf5(file, atoms)
        for name, (value, unit, label) in given.items():
            if value is not None:
                converted = np.asarray(np.asarray(value, float) / unit, np.float32)
                _extend(file, name, converted, label)
        for name, value in ours.items():
            _extend(file, name, np.asarray(value), None)


def _begin_hdf5(file: Any, atoms: Atoms) -> None:
    from mdtraj.formats import HDF5TrajectoryFile

    from mosaicmd.kernel import __version__

    file.attrs.update(
        conventions=np.bytes_("Pande"),
        conventionVersion=np.bytes_("1.1"),
        program=np.bytes_("MosaicMD"),
        programVersion=np.bytes_(__version__),
    )
    topology = HDF5TrajectoryFile.convert_topology_to_dict(atoms.topology)
    file["topology"] = np.array([json.dumps(topology).encode("ascii")])
    group = file.create_group(_OURS)
    group.create_group("quantities")
    system = atoms.system
    for name in _OF_ATOMS:
        if (value := getattr(system, name)) is not None:
            group[name] = np.asarray(value)
    group.attrs["kT"] = atoms.kT
    if atoms.pressure is not None:
        group.attrs["pressure"] = atoms.pressure


def _extend(file: Any, name: str, rows: np.ndarray, unit: str | None) -> None:
    if name not in file:
        per_chunk = max(1, _HDF5_CHUNK_BYTES // max(1, rows[0].nbytes))
        file.create_dataset(
            name,
            data=rows,
            maxshape=(None, *rows.shape[1:]),
            chunks=(per_chunk, *rows.shape[1:]),
        )
        if unit is not None:
            file[name].attrs["units"] = np.bytes_(unit)
        return
    dataset = file[name]
    n_before = len(dataset)
    dataset.resize(n_before + len(rows), axis=0)
    dataset[n_before:] = rows


def _read_hdf5(path: Path) -> tuple[Frames, Atoms | None]:
    h5py = require("h5py")
    with h5py.File(path, "r") as file:

        def load(name: str, unit: float) -> np.ndarray | None:
            return file[name][()].astype(float) * unit if name in file else None

        positions = load("coordinates", units.NANOMETER)
        lengths, angles = load("cell_lengths", units.NANOMETER), load("cell_angles", 1.0)
        velocities = load("velocities", units.NANOMETER / units.PICOSECOND)
        named = {"energy": "potentialEnergy", "kinetic_energy": "kineticEnergy"}
        quantities = {name: load(other, units.KJ_PER_MOL) for name, other in named.items()}
        quantities["temperature_kelvin"] = load("temperature", 1.0)
        time, step, atoms = load("time", units.PICOSECOND), None, None
        topology = _hdf5_topology(file)
        if _OURS in file:
            group = file[_OURS]
            quantities |= {name: value[()] for name, value in group["quantities"].items()}
            time = group["time"][()] if "time" in group else time
            step = group["step"][()] if "step" in group else None
            stored = {k: group[k][()] for k in _OF_ATOMS if k in group}
            system = host_system(**stored)
            pressure = group.attrs.get("pressure")
            pressure = None if pressure is None else float(pressure)
            atoms = Atoms(system, topology, float(group.attrs["kT"]), pressure)
        elif topology is not None:
            system = system_of_topology(topology)
            system = system._replace(pbc=np.full(3, lengths is not None))
            atoms = Atoms(system, topology, math.nan, None)
    if velocities is not None and atoms is not None:
        velocities = velocities * np.asarray(atoms.system.masses, float)[None, :, None]
    cell = None if lengths is None or angles is None else cells(lengths, angles)
    quantities = {name: value for name, value in quantities.items() if value is not None}
    assert positions is not None
    return Frames(positions, cell, quantities, velocities, time, step), atoms


def _hdf5_topology(file: Any) -> mdtraj.Topology | None:
    """From the JSON that mdtraj's layout keeps it in."""
    if "topology" not in file:
        return None
    from mdtraj import Topology
    from mdtraj.core import element

    stored = json.loads(bytes(file["topology"][0]).decode())
    topology, atoms = Topology(), {}
    for chain in stored["chains"]:
        new_chain = topology.add_chain(chain.get("chain_id"))
        for residue in chain["residues"]:
            new_residue = topology.add_residue(
                residue["name"],
                new_chain,
                resSeq=residue.get("resSeq"),
                segment_id=residue.get("segmentID", ""),
            )
            for atom in residue["atoms"]:
                symbol = atom["element"]
                kind = element.get_by_symbol(symbol) if symbol else element.virtual
                atoms[atom["index"]] = topology.add_atom(atom["name"], kind, new_residue)
    for first, second in stored["bonds"]:
        topology.add_bond(atoms[first], atoms[second])
    return topology


# ASE trajectories: everything in float64


def _append_ase(stream: io.RawIOBase, n_before: int, frames: Frames, atoms: Atoms) -> None:
    import ase.io
    from ase.calculators.singlepoint import SinglePointCalculator

    system = atoms.system._replace(cell=0.0 * atoms.system.cell)
    writer: Any = ase.io.Trajectory(stream, "w" if n_before == 0 else "a")
    stream.seek(0, io.SEEK_END)  # it has read the header from the same stream
    if n_before == 0:
        pressure = None if atoms.pressure is None else float(atoms.pressure)
        kT = None if math.isnan(atoms.kT) else float(atoms.kT)
        writer.set_description({"kT": kT, "pressure": pressure})
    for index, positions in enumerate(frames.positions):
        image = to_ase(system)
        image.positions[:] = positions
        if frames.cell is not None:
            image.set_cell(np.asarray(frames.cell[index], float))
        if frames.momenta is not None:
            image.set_momenta(np.asarray(frames.momenta[index], float))
        values = {name: np.asarray(value[index]) for name, value in frames.quantities.items()}
        values |= {} if frames.time is None else {"time": np.asarray(frames.time[index])}
        values |= {} if frames.step is None else {"step": np.asarray(frames.step[index])}
        if "energy" in values:
            image.calc = SinglePointCalculator(image, energy=float(values.pop("energy")))
        image.info.update({k: v.item() if v.ndim == 0 else v for k, v in values.items()})
        writer.write(image)
    writer.close()


def _read_ase(path: Path) -> tuple[Frames, Atoms]:
    import ase.io

    reader: Any = ase.io.Trajectory(path)
    with reader as file:
        images = list(file)
        description = getattr(file, "description", None) or {}
    first = images[0]
    infos = [dict(image.info) for image in images]
    shared = [k for k in infos[0] if all(k in info for info in infos) and k != "total_charge"]
    values = {k: np.asarray([info[k] for info in infos]) for k in shared}
    values = {k: v for k, v in values.items() if v.dtype.kind in "biuf"}
    time, step = values.pop("time", None), values.pop("step", None)
    if first.calc is not None and "energy" in first.calc.results:
        values["energy"] = np.array([image.get_potential_energy() for image in images])
    momenta = np.stack([image.get_momenta() for image in images]) if first.has("momenta") else None
    cell = np.stack([image.cell.array for image in images]) if first.cell.rank == 3 else None
    kT, pressure = description.get("kT"), description.get("pressure")
    return (
        Frames(np.stack([image.positions for image in images]), cell, values, momenta, time, step),
        Atoms(from_ase(first), None, math.nan if kT is None else kT, pressure),
    )


def _written(write: Callable[[str], None], suffix: str) -> bytes:
    """What a library that wants a path writes there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "frames" + suffix)
        write(str(path))
        return path.read_bytes()


FORMATS = {
    ".dcd": FileFormat(_append_dcd, _read_dcd),
    ".xtc": FileFormat(_append_xtc, _read_xtc),
    ".h5": FileFormat(_append_hdf5, _read_hdf5),
    ".traj": FileFormat(_append_ase, _read_ase),
}
