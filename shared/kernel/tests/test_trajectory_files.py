"""Trajectory files against mdtraj and ASE, and writers that are killed while they write."""

import os
import subprocess
import sys
import textwrap

import ase.io
import jax
import jax.numpy as jnp
import mdtraj
import numpy as np
import pytest

from mosaicmd.kernel import units
from mosaicmd.kernel.systems import make_system, pad_system
from mosaicmd.kernel.trajectory import StatePoint, Trajectory, concatenate
from mosaicmd.kernel.trajectory_files import (
    TrajectoryWriter,
    from_mdtraj,
    read_trajectory,
    to_mdtraj,
    write_trajectory,
)

TRICLINIC = np.array([[10.0, 0.0, 0.0], [2.5, 9.5, 0.0], [-2.0, 3.0, 9.0]])
ENDINGS = (".dcd", ".xtc", ".h5", ".traj")
NAMED = {".dcd", ".xtc"}  # these do not know the elements

pytestmark = pytest.mark.filterwarnings(
    # ASE and mdtraj set the shape of arrays in place, which NumPy 2.5 deprecates.
    "ignore:Setting the shape:DeprecationWarning",
)


def water(n_frames=5, first=0, *, cell=TRICLINIC, dtype="float64", n_slots=None, n_molecules=5):
    """Molecules at random, as pieces of one trajectory that begins at ``first``."""
    species = [8, 1, 1] * n_molecules
    system = make_system(np.zeros((len(species), 3)), species, cell=cell, dtype=dtype)
    rng = np.random.default_rng(7 + first)
    positions = rng.normal(scale=6.0, size=(n_frames, len(species), 3))
    momenta = rng.normal(scale=0.2, size=positions.shape)
    if n_slots is not None:
        system = pad_system(system, n_slots)
        widths = ((0, 0), (0, n_slots - len(species)), (0, 0))
        positions, momenta = np.pad(positions, widths), np.pad(momenta, widths)
    scale = 1.0 + 0.01 * rng.uniform(size=(n_frames, 1, 1))
    cells = np.zeros((n_frames, 3, 3)) if cell is None else scale * np.asarray(cell)
    systems = system._replace(
        positions=jnp.asarray(positions, dtype), cell=jnp.asarray(cells, dtype)
    )
    quantities = {
        "energy": jnp.asarray(rng.normal(size=n_frames), dtype),
        "pressure": jnp.asarray(rng.normal(size=n_frames), dtype),
        "pressure_tensor": jnp.asarray(rng.normal(size=(n_frames, 3, 3)), dtype),
    }
    time = 0.5 * (first + jnp.arange(n_frames, dtype="float64"))
    return Trajectory(systems, quantities, StatePoint(0.025, 1e-6), jnp.asarray(momenta), time)


def read_back(path, system):
    return read_trajectory(path, system if path.suffix in NAMED else None)


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("n_slots", [None, 20])
@pytest.mark.parametrize("ending", ENDINGS)
def test_files_keep_what_they_say(tmp_path, ending, n_slots):
    frames, path = water(n_slots=n_slots), tmp_path / f"a{ending}"
    expected = water()
    write_trajectory(path, frames, steps=100 + 10 * np.arange(5))
    found = read_back(path, expected.frame(0))
    tolerance = {".dcd": 1e-6, ".xtc": 0.00501, ".h5": 2e-6, ".traj": 0.0}[ending]
    np.testing.assert_allclose(
        found.systems.positions, expected.systems.positions, rtol=0, atol=tolerance
    )
    tolerance = 0.0 if ending == ".traj" else 3e-6
    np.testing.assert_allclose(found.systems.cell, expected.systems.cell, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found.systems.species, expected.systems.species)
    np.testing.assert_array_equal(found.systems.pbc, True)
    np.testing.assert_array_equal(found.quantities["step"], [100, 110, 120, 130, 140])
    if ending in (".h5", ".traj"):
        for name, value in expected.quantities.items():
            np.testing.assert_array_equal(found.quantities[name], value)
        np.testing.assert_array_equal(found.time, expected.time)
        np.testing.assert_array_equal(found.systems.masses, expected.systems.masses)
        assert found.state_point == expected.state_point
        rtol = 0.0 if ending == ".traj" else 2e-7
        np.testing.assert_allclose(found.momenta, expected.momenta, rtol=rtol)
    elif ending == ".xtc":
        np.testing.assert_allclose(found.time, expected.time, rtol=1e-6)
    assert os.listdir(tmp_path) == [path.name]


def test_dcd_time_is_that_of_its_steps(tmp_path):
    """The format has a constant time step, and frames at multiples of it."""
    frames = water()._replace(time=0.05 * (100 + 10 * jnp.arange(5.0)))
    write_trajectory(tmp_path / "a.dcd", frames, steps=100 + 10 * np.arange(5))
    found = read_trajectory(tmp_path / "a.dcd", frames.frame(0))
    np.testing.assert_allclose(found.time, frames.time, rtol=1e-6)


@pytest.mark.parametrize(("ending", "dtype"), [(".dcd", "float32"), (".traj", "float64")])
def test_round_trips_are_exact_to_the_bit(tmp_path, ending, dtype):
    frames, path = water(dtype=dtype), tmp_path / f"a{ending}"
    write_trajectory(path, frames)
    found = read_trajectory(path, frames.frame(0), dtype=dtype)
    np.testing.assert_array_equal(found.systems.positions, frames.systems.positions)


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_was_read_is_written_and_read_alike(tmp_path, ending):
    """Rounding happens once: a second trip through the file changes no bit."""
    frames = water()
    write_trajectory(tmp_path / f"a{ending}", frames)
    first = read_back(tmp_path / f"a{ending}", frames.frame(0))
    write_trajectory(tmp_path / f"b{ending}", first)
    second = read_back(tmp_path / f"b{ending}", frames.frame(0))
    np.testing.assert_array_equal(first.systems.positions, second.systems.positions)


@pytest.mark.parametrize("ending", [".dcd", ".xtc", ".h5"])
def test_mdtraj_reads_our_files(tmp_path, ending):
    frames, path = water(), tmp_path / f"a{ending}"
    write_trajectory(path, frames)
    topology = {} if ending == ".h5" else {"top": to_mdtraj(frames).topology}
    if ending == ".h5":
        pytest.importorskip("tables")
    theirs = mdtraj.load(str(path), **topology)
    np.testing.assert_allclose(10.0 * theirs.xyz, frames.systems.positions, atol=0.00501)
    np.testing.assert_allclose(10.0 * theirs.unitcell_vectors, frames.systems.cell, atol=1e-5)
    assert [atom.element.symbol for atom in theirs.topology.atoms] == ["O", "H", "H"] * 5
    if ending != ".dcd":
        np.testing.assert_allclose(theirs.time * units.PICOSECOND, frames.time, rtol=1e-6)


def test_mdtraj_finds_energies_and_velocities_in_hdf5(tmp_path):
    pytest.importorskip("tables")
    frames = water()
    write_trajectory(tmp_path / "a.h5", frames)
    with mdtraj.formats.HDF5TrajectoryFile(str(tmp_path / "a.h5")) as file:
        theirs = file.read()
    energy = theirs.potentialEnergy * units.KJ_PER_MOL
    np.testing.assert_allclose(energy, frames.quantities["energy"], rtol=1e-6)
    velocity = theirs.velocities * units.NANOMETER / units.PICOSECOND
    momenta = velocity * np.asarray(frames.systems.masses)[None, :, None]
    np.testing.assert_allclose(momenta, frames.momenta, rtol=1e-6)


@pytest.mark.parametrize("ending", [".dcd", ".xtc", ".h5"])
def test_files_of_mdtraj_are_read(tmp_path, ending):
    if ending == ".h5":
        pytest.importorskip("tables")
    frames, path = water(), tmp_path / f"a{ending}"
    theirs = to_mdtraj(frames)
    theirs.save(str(path))
    found = read_trajectory(path, None if ending == ".h5" else theirs.topology)
    topology = {} if ending == ".h5" else {"top": theirs.topology}
    expected = from_mdtraj(mdtraj.load(str(path), **topology))
    np.testing.assert_allclose(
        found.systems.positions, expected.systems.positions, rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(found.systems.cell, expected.systems.cell, atol=1e-5)
    np.testing.assert_array_equal(found.systems.species, frames.systems.species)
    np.testing.assert_array_equal(found.systems.pbc, True)


def test_topologies_come_from_files_and_go_into_hdf5(tmp_path):
    frames = water(2)
    topology = mdtraj.Topology()
    for number in range(5):
        residue = topology.add_residue("HOH", topology.add_chain(), resSeq=number + 7)
        atoms = [
            topology.add_atom(name, mdtraj.element.get_by_symbol(name[0]), residue)
            for name in ("O", "H1", "H2")
        ]
        topology.add_bond(atoms[0], atoms[1])
        topology.add_bond(atoms[0], atoms[2])
    to_mdtraj(frames, topology)[0].save(str(tmp_path / "top.pdb"))
    write_trajectory(tmp_path / "a.h5", frames, topology=tmp_path / "top.pdb")
    write_trajectory(tmp_path / "a.xtc", frames)
    found = read_trajectory(tmp_path / "a.xtc", tmp_path / "top.pdb")
    np.testing.assert_array_equal(found.systems.species, frames.systems.species)
    pytest.importorskip("tables")
    theirs = mdtraj.load(str(tmp_path / "a.h5")).topology
    assert [residue.resSeq for residue in theirs.residues] == [7, 8, 9, 10, 11]
    assert theirs.n_bonds == 10
    assert [atom.name for atom in theirs.residue(2).atoms] == ["O", "H1", "H2"]


def test_ase_reads_energies_momenta_and_pressure(tmp_path):
    frames = water()
    write_trajectory(tmp_path / "a.traj", frames, steps=np.array([5, 6, 7, 8, 9]))
    images = ase.io.read(tmp_path / "a.traj", index=":")
    for index, image in enumerate(images):
        np.testing.assert_array_equal(image.positions, frames.systems.positions[index])
        np.testing.assert_array_equal(image.cell.array, frames.systems.cell[index])
        np.testing.assert_array_equal(image.get_momenta(), frames.momenta[index])
        assert image.get_potential_energy() == float(frames.quantities["energy"][index])
        assert image.info["pressure"] == float(frames.quantities["pressure"][index])
        assert image.info["step"] == 5 + index
    images[0].write(tmp_path / "theirs.traj")
    found = read_trajectory(tmp_path / "theirs.traj")
    np.testing.assert_array_equal(found.systems.positions[0], frames.systems.positions[0])
    np.testing.assert_array_equal(found.quantities["energy"], frames.quantities["energy"][:1])


@pytest.mark.parametrize("handedness", [1.0, -1.0])
def test_cells_in_other_orientations_are_turned(tmp_path, handedness):
    """All distances between images, and the handedness of the atoms, stay."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    cell = TRICLINIC @ turn
    cell[2] *= handedness
    frames = water(cell=cell)
    write_trajectory(tmp_path / "a.h5", frames)
    found = read_trajectory(tmp_path / "a.h5")
    for index in range(5):
        ours, theirs = frames.frame(index), found.frame(index)
        one, other = np.asarray(ours.positions), np.asarray(theirs.positions)
        # The turn from four atoms must take all others, momenta and the lattice along.
        matrix = np.linalg.solve(one[1:4] - one[0], other[1:4] - other[0])
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-4)
        assert np.linalg.det(matrix) > 0.0
        np.testing.assert_allclose(one @ matrix, other, atol=1e-4)
        np.testing.assert_allclose(
            np.asarray(frames.momenta[index]) @ matrix, found.momenta[index], atol=1e-4
        )
        images = np.asarray(ours.cell) @ matrix @ np.linalg.inv(np.asarray(theirs.cell))
        np.testing.assert_allclose(np.abs(np.round(images)), np.eye(3))
        np.testing.assert_allclose(images, np.round(images), atol=1e-4)


@pytest.mark.parametrize("ending", ENDINGS)
def test_free_boundaries_have_no_cell(tmp_path, ending):
    frames, path = water(cell=None), tmp_path / f"a{ending}"
    write_trajectory(path, frames)
    found = read_back(path, frames.frame(0))
    np.testing.assert_array_equal(found.systems.cell, 0.0)
    np.testing.assert_array_equal(found.systems.pbc, False)
    assert to_mdtraj(frames).unitcell_lengths is None
    np.testing.assert_array_equal(from_mdtraj(to_mdtraj(frames)).systems.pbc, False)


def test_mdtraj_and_back():
    frames = water()
    found = from_mdtraj(to_mdtraj(frames), kT=0.025, pressure=1e-6)
    np.testing.assert_allclose(found.systems.positions, frames.systems.positions, atol=2e-6)
    np.testing.assert_allclose(found.systems.cell, frames.systems.cell, atol=3e-6)
    np.testing.assert_allclose(found.time, frames.time, rtol=1e-6)
    np.testing.assert_allclose(found.systems.masses, frames.systems.masses, rtol=1e-3)
    assert found.state_point == frames.state_point


def test_beads_are_virtual_sites_to_mdtraj(tmp_path):
    system = make_system(np.eye(3), [200, 200, 201], masses=[18.0, 18.0, 72.0])
    systems = system._replace(positions=system.positions[None], cell=system.cell[None])
    frames = Trajectory(systems, {}, StatePoint(0.025))
    theirs = to_mdtraj(frames)
    assert [atom.name for atom in theirs.topology.atoms] == ["B200", "B200", "B201"]
    with pytest.raises(ValueError, match=r"atom 0 .* has no element; give a `System`"):
        from_mdtraj(theirs)
    found = from_mdtraj(theirs, system=system)
    np.testing.assert_array_equal(found.systems.masses, [18.0, 18.0, 72.0])
    write_trajectory(tmp_path / "a.h5", frames)
    found = read_trajectory(tmp_path / "a.h5")
    np.testing.assert_array_equal(found.systems.species, [200, 200, 201])
    np.testing.assert_array_equal(found.systems.masses, [18.0, 18.0, 72.0])


# Writers


@pytest.mark.parametrize("ending", ENDINGS)
def test_pieces_make_the_file_of_the_whole(tmp_path, ending):
    pieces = [water(4, first) for first in (0, 4, 8)]
    writer = TrajectoryWriter(tmp_path / f"a{ending}", pieces[0].frame(0))
    assert (writer.n_frames, writer.last_step) == (0, None)
    for number, piece in enumerate(pieces):
        assert writer.append(piece, 10 * (1 + 4 * number + np.arange(4))) == 4
    assert (writer.n_frames, writer.last_step) == (12, 120)
    whole = concatenate(pieces)._replace(state_point=pieces[0].state_point)
    write_trajectory(tmp_path / f"b{ending}", whole, steps=10 * (1 + np.arange(12)))
    system = pieces[0].frame(0)
    found = [read_back(tmp_path / f"{name}{ending}", system) for name in "ab"]
    equal(*found)
    if ending in NAMED:
        one, other = ((tmp_path / f"{name}{ending}").read_bytes() for name in "ab")
        assert len(one) == len(other)
        assert one[300:] == other[300:]  # the header of a DCD file has the date


def test_frames_that_are_there_are_passed_over_and_gaps_are_named(tmp_path):
    whole = water(12)
    system = whole.frame(0)

    def piece(first, last):
        positions, cell, *rest = jax.tree.map(
            lambda leaf: leaf[first:last],
            (whole.systems.positions, whole.systems.cell, *whole[1:2], *whole[3:]),
        )
        systems = whole.systems._replace(positions=positions, cell=cell)
        return Trajectory(systems, rest[0], whole.state_point, *rest[1:])

    path = tmp_path / "a.h5"
    writer = TrajectoryWriter(path, system)
    assert writer.append(piece(0, 1), np.array([10])) == 1
    assert writer.append(piece(0, 5), 10 * np.arange(1, 6)) == 4
    writer = TrajectoryWriter(path, system)
    assert writer.append(piece(2, 8), 10 * np.arange(3, 9)) == 3
    assert writer.append(piece(2, 8), 10 * np.arange(3, 9)) == 0
    for steps in (10 * np.arange(10, 13), np.arange(81, 84), 5 * np.arange(17, 20)):
        with pytest.raises(ValueError, match="ends at step 80 and has a frame every 10 steps"):
            writer.append(piece(9, 12), steps)
    with pytest.raises(ValueError, match="`steps` must be 3 integers that grow by one spacing"):
        writer.append(piece(9, 12), np.array([90, 100, 120]))
    with pytest.raises(ValueError, match=r"but the frames of .* have"):
        writer.append(piece(8, 12)._replace(momenta=None), 10 * np.arange(9, 13))
    assert writer.append(piece(8, 12), 10 * np.arange(9, 13)) == 4
    write_trajectory(tmp_path / "b.h5", whole, steps=10 * np.arange(1, 13))
    equal(read_trajectory(path), read_trajectory(tmp_path / "b.h5"))


def test_foreign_files_and_other_atoms_are_refused(tmp_path):
    frames = water()
    write_trajectory(tmp_path / "a.xtc", frames)
    with pytest.raises(FileExistsError, match="is not under construction"):
        TrajectoryWriter(tmp_path / "a.xtc", frames.frame(0))
    TrajectoryWriter(tmp_path / "b.xtc", frames.frame(0)).append(frames, np.arange(5))
    other = water(n_molecules=4)
    with pytest.raises(ValueError, match="was begun with other atoms"):
        TrajectoryWriter(tmp_path / "b.xtc", other.frame(0))
    writer = TrajectoryWriter(tmp_path / "b.xtc", frames.frame(0))
    with pytest.raises(ValueError, match="has other atoms than"):
        writer.append(other, 5 + np.arange(5))
    with open(tmp_path / "b.xtc", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="has 100 bytes, but"):
        TrajectoryWriter(tmp_path / "b.xtc", frames.frame(0))
    (tmp_path / "b.xtc.journal").write_text("{")
    with pytest.raises(ValueError, match=r"journal cannot be read: .* delete it"):
        TrajectoryWriter(tmp_path / "b.xtc", frames.frame(0))


def test_a_torn_piece_is_discarded_and_said_so(tmp_path):
    frames, path = water(), tmp_path / "a.xtc"
    TrajectoryWriter(path, frames.frame(0)).append(frames, np.arange(5))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:77])
    with pytest.warns(UserWarning, match=r"is discarded \(77 bytes\); the file ends at 4"):
        writer = TrajectoryWriter(path, frames.frame(0))
    assert path.read_bytes() == whole
    assert writer.append(water(5, 5), 5 + np.arange(5)) == 5
    assert read_trajectory(path, frames.frame(0)).n_frames == 10


KILLED = """
    import os, signal, sys, warnings
    import ase.io, h5py, mdtraj, numpy as np
    import mosaicmd.kernel._append_file as append_file
    import mosaicmd.kernel.files as files
    from mosaicmd.kernel.systems import System
    from mosaicmd.kernel.trajectory import StatePoint, Trajectory
    from mosaicmd.kernel.trajectory_files import TrajectoryWriter

    warnings.simplefilter("ignore")
    folder, n_atoms = sys.argv[1], 13
    rng = np.random.default_rng(0)
    system = System(
        np.zeros((n_atoms, 3)), 9.0 * np.eye(3), np.full(n_atoms, 18, np.int32),
        np.full(n_atoms, 40.0), np.ones(n_atoms, bool), np.ones(3, bool),
    )
    positions = rng.normal(size=(12, n_atoms, 3))

    def write(ending):
        writer = TrajectoryWriter(os.path.join(folder, "run" + ending), system)
        for first in range(0, 12, 3):
            piece = positions[first : first + 3]
            systems = system._replace(positions=piece, cell=np.tile(system.cell, (3, 1, 1)))
            frames = Trajectory(systems, {"energy": piece[:, 0, 0]}, StatePoint(0.025))
            writer.append(frames, 10 * np.arange(first, first + 3))

    class Kill:
        def __init__(self, at):
            self.left = at

        def __call__(self, file, data):
            self.left -= 1
            if self.left == 0:  # half of it reaches the file
                if data is not None:
                    file.write(bytes(data)[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)

    class Watched:
        def __init__(self, file, kill):
            self.file, self.kill = file, kill

        def write(self, data):
            self.kill(self.file, data)
            return self.file.write(data)

        def truncate(self, size):
            self.kill(self.file, None)
            return self.file.truncate(size)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    def killed_at(count, ending):
        kill = Kill(count)
        append_file.open = lambda *args, **more: Watched(open(*args, **more), kill)
        replace, new = os.replace, files._write_new_file
        def replaced(*args):
            kill(None, None)
            replace(*args)
            kill(None, None)
        os.replace = replaced
        write(ending)

    for ending in (".dcd", ".xtc", ".h5", ".traj"):
        kills, latest, done = 0, 8.0, False
        while not done:
            count = int(rng.integers(1, latest + 1))
            pid = os.fork()
            if pid == 0:
                killed_at(count, ending)
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            done = status == 0
            assert done or os.WIFSIGNALED(status), status
            kills, latest = kills + (not done), latest * 1.25
        print(ending, kills)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals and fork")
def test_writers_survive_being_killed_at_any_write(tmp_path):
    """SIGKILL in the middle of writes, renames and truncations, resumed until all is written.

    Nothing is lost or written twice: the files are those of one call.
    """
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    found = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    kills = dict(line.split() for line in found.stdout.splitlines() if line.startswith("."))
    assert set(kills) == set(ENDINGS)
    assert all(int(count) >= 3 for count in kills.values()), kills
    positions = np.random.default_rng(0).normal(size=(12, 13, 3))
    system = make_system(positions[0], 18, cell=9.0, masses=40.0)
    systems = system._replace(
        positions=jnp.asarray(positions), cell=jnp.tile(system.cell, (12, 1, 1))
    )
    whole = Trajectory(systems, {"energy": jnp.asarray(positions[:, 0, 0])}, StatePoint(0.025))
    for ending in ENDINGS:
        write_trajectory(tmp_path / f"whole{ending}", whole, steps=10 * np.arange(12))
        one, other = (read_back(tmp_path / f"{name}{ending}", system) for name in ("run", "whole"))
        equal(one, other)


def test_bad_input_is_named(tmp_path):
    frames = water()
    with pytest.raises(ValueError, match=r"the ending must be one of \.dcd, \.xtc, \.h5, \.traj"):
        write_trajectory(tmp_path / "a.xyz", frames)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_trajectory(tmp_path / "a.dcd")
    write_trajectory(tmp_path / "a.xtc", frames)
    with pytest.raises(ValueError, match="does not say what its atoms are"):
        read_trajectory(tmp_path / "a.xtc")
    with pytest.raises(ValueError, match="the frames have 15 atoms, but the system has 12"):
        read_trajectory(tmp_path / "a.xtc", water(n_molecules=4).frame(0))
    with pytest.raises(ValueError, match="`topology` has 15 atoms, the trajectory 12"):
        write_trajectory(
            tmp_path / "b.h5", water(n_molecules=4), topology=to_mdtraj(frames).topology
        )
    with pytest.raises(ValueError, match="does not fit into an XTC file"):
        write_trajectory(tmp_path / "b.xtc", frames, steps=2**31 + np.arange(5))
    assert not (tmp_path / "b.xtc").exists()
    for ending in ENDINGS:
        (tmp_path / f"c{ending}").write_bytes(b"to be or not to be, that is the question" * 4)
        with pytest.raises(ValueError, match="is damaged or empty"):
            read_trajectory(tmp_path / f"c{ending}", frames.frame(0))
