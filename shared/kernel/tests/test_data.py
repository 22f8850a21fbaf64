"""Structures from files: against figures known from the files, and faults that are named."""

import gzip
import os
from pathlib import Path
from typing import cast

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from mosaicmd.kernel import units
from mosaicmd.kernel.data import DataError, labels_of, read_structures, read_systems

# ASE 3.29 sets the shape of arrays in place, which NumPy 2.5 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning:ase")


def refused(path, *fragments, **options):
    with pytest.raises(DataError) as caught:
        read_structures(path, **options)
    for fragment in (str(path), *fragments):
        assert fragment in str(caught.value)


@pytest.fixture
def silicon():
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    results = {
        "energy": -43.5,
        "forces": np.arange(24.0).reshape(8, 3),
        "stress": np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) * 1e-3,
    }
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


# Extended XYZ


@pytest.mark.parametrize("name", ["a.extxyz", "a.extxyz.gz", "a.xyz"])
def test_extxyz_keeps_structure_and_labels(tmp_path, silicon, name):
    silicon.info["total_charge"] = 1.0
    ase.io.write(tmp_path / name, [silicon, silicon], format="extxyz")
    first, second = read_structures(tmp_path / name)
    np.testing.assert_allclose(first.positions, silicon.positions, atol=1e-8)
    np.testing.assert_allclose(first.cell, silicon.cell)
    labels = labels_of(second)
    assert (labels.energy, labels.total_charge) == (-43.5, 1.0)
    np.testing.assert_allclose(np.asarray(labels.forces), np.arange(24.0).reshape(8, 3))
    voigt_as_matrix = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]) * 1e-3
    np.testing.assert_allclose(np.asarray(labels.stress), voigt_as_matrix)
    assert (labels.charges, labels.dipole) == (None, None)
    np.testing.assert_allclose(second.get_forces(), np.asarray(labels.forces))


def test_systems_come_with_their_labels(tmp_path, silicon):
    ase.io.write(tmp_path / "a.extxyz", silicon)
    ((system, labels),) = read_systems(tmp_path / "a.extxyz", dtype="float32")
    assert system.positions.dtype == np.float32
    np.testing.assert_array_equal(system.species, 14)
    np.testing.assert_array_equal(system.pbc, True)
    assert labels.energy == -43.5


def test_units_of_the_file_are_converted(tmp_path, silicon):
    """The same structure written in nm, kJ/mol and kJ/mol/nm."""
    scaled = silicon.copy()
    scaled.set_cell(silicon.cell.array / 10.0, scale_atoms=True)
    per_mol = 1.0 / units.KJ_PER_MOL
    scaled.calc = SinglePointCalculator(
        scaled,
        energy=-43.5 * per_mol,
        forces=silicon.get_forces() * per_mol * 10.0,
        stress=silicon.get_stress() * per_mol * 1000.0,
    )
    ase.io.write(tmp_path / "a.extxyz", scaled)
    (atoms,) = read_structures(tmp_path / "a.extxyz", length_unit="nm", energy_unit="kJ/mol")
    np.testing.assert_allclose(atoms.positions, silicon.positions, atol=1e-6)
    np.testing.assert_allclose(atoms.cell.array, silicon.cell.array)
    np.testing.assert_allclose(atoms.get_potential_energy(), -43.5)
    np.testing.assert_allclose(atoms.get_forces(), silicon.get_forces(), atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(labels_of(atoms).stress), silicon.get_stress(voigt=False), rtol=1e-6
    )


def test_lengths_in_nm_are_noticed(tmp_path, silicon):
    silicon.set_cell(silicon.cell.array / 10.0, scale_atoms=True)
    ase.io.write(tmp_path / "a.xyz", silicon)
    refused(tmp_path / "a.xyz", "frame 0", "nm read as Å", 'length_unit="nm"')


def test_overlapping_atoms_are_named(tmp_path, silicon):
    """Also through a periodic boundary."""
    silicon.positions[3] = silicon.positions[6] + silicon.cell.array[0] + [0.1, 0.0, 0.0]
    ase.io.write(tmp_path / "a.xyz", silicon)
    refused(tmp_path / "a.xyz", "atoms 3 and 6 are 0.1 Å apart", "`min_distance`")
    assert len(read_structures(tmp_path / "a.xyz", min_distance=0.0)) == 1


@pytest.mark.parametrize("column", ["positions", "forces"])
def test_nan_is_named_by_frame_and_atom(tmp_path, silicon, column):
    broken = silicon.copy()
    results = dict(silicon.calc.results)
    if column == "positions":
        broken.positions[5, 1] = np.nan
    else:
        results["forces"] = np.where(np.arange(8)[:, None] == 5, np.nan, results["forces"])
    broken.calc = SinglePointCalculator(broken, **results)
    ase.io.write(tmp_path / "a.extxyz", [silicon, broken])
    refused(tmp_path / "a.extxyz", f"frame 1: `{column}` of atom 5 is not finite")


def test_nan_energy_is_named(tmp_path):
    (tmp_path / "a.xyz").write_text("1\nenergy=nan\nH 0 0 0\n")
    refused(tmp_path / "a.xyz", "frame 0: `energy` is not finite")


def test_missing_empty_and_damaged_files_are_named(tmp_path, silicon):
    refused(tmp_path / "none.xyz", "does not exist")
    (tmp_path / "empty.xyz").touch()
    refused(tmp_path / "empty.xyz", "holds no structure")
    ase.io.write(tmp_path / "a.xyz", silicon)
    text = (tmp_path / "a.xyz").read_text()
    (tmp_path / "cut.xyz").write_text(text[: text.rindex("Si")])
    refused(tmp_path / "cut.xyz", "ends within the frame that begins at line 1")
    (tmp_path / "text.xyz").write_text("to be or not to be\n")
    refused(tmp_path / "text.xyz", "damaged or no .xyz file")
    (tmp_path / "bad.xyz.gz").write_bytes(b"no gzip")
    refused(tmp_path / "bad.xyz.gz", "damaged")
    (tmp_path / "cut.xyz.gz").write_bytes(gzip.compress(text.encode())[:-20])
    refused(tmp_path / "cut.xyz.gz", "damaged")
    (tmp_path / "a.docx").touch()
    refused(tmp_path / "a.docx", "format '.docx' is unknown", ".extxyz")


def test_beads_in_xyz_need_a_mapping(tmp_path):
    (tmp_path / "a.xyz").write_text("3\n\nBB 0 0 0\nSC1 3 0 0\nBB 6 0 0\n")
    refused(tmp_path / "a.xyz", "['BB', 'SC1'] are no elements", "2 BB, 1 SC1", "species={")
    (atoms,) = read_structures(
        tmp_path / "a.xyz", species={"BB": 1, "SC1": 200}, masses={"BB": 72.0, "SC1": 54.0}
    )
    np.testing.assert_array_equal(atoms.numbers, [1, 200, 1])
    np.testing.assert_array_equal(atoms.get_masses(), [72.0, 54.0, 72.0])
    np.testing.assert_array_equal(atoms.positions[:, 0], [0.0, 3.0, 6.0])


# GROMACS and PDB

GRO = """\
two waters and an ion
    7
    1SOL     OW    1   0.126   1.624   1.679  0.1227 -0.0580  0.0434
    1SOL    HW1    2   0.190   1.661   1.747  0.8085  0.3191 -0.7791
    1SOL    HW2    3   0.177   1.568   1.613 -0.9045 -2.6469  1.3180
    2SOL     OW    4   1.275   0.053   0.622  0.2519  0.3140 -0.1734
    2SOL    HW1    5   1.337   0.002   0.680 -1.0641 -1.1349  0.0257
    2SOL    HW2    6   1.326   0.120   0.568  1.9427 -0.8216 -0.0244
    3NA      NA    7   0.900   0.900   0.900  0.0000  0.0000  0.0000
   1.82060   1.82060   1.82060
"""


def test_gro_is_read_in_angstrom_with_certain_elements(tmp_path):
    (tmp_path / "a.gro").write_text(GRO)
    (atoms,) = read_structures(tmp_path / "a.gro")
    assert atoms.get_chemical_symbols() == ["O", "H", "H", "O", "H", "H", "Na"]
    np.testing.assert_allclose(atoms.positions[1], [1.90, 16.61, 17.47])
    np.testing.assert_allclose(atoms.cell.array, np.eye(3) * 18.206)
    assert atoms.pbc.all()
    velocity = np.array([0.1227, -0.0580, 0.0434]) * units.NANOMETER / units.PICOSECOND
    np.testing.assert_allclose(atoms.get_velocities()[0], velocity)
    theirs = cast("ase.Atoms", ase.io.read(tmp_path / "a.gro"))
    np.testing.assert_allclose(atoms.positions, theirs.positions)
    np.testing.assert_allclose(atoms.get_velocities(), theirs.get_velocities(), rtol=1e-7)


def test_gro_of_higher_precision_and_several_frames(tmp_path):
    """Column widths follow from the distance of the decimal points (GROMACS manual)."""
    frame = (
        "t= {0}\n    1\n    1AR      AR    1   {0}.123456   2.234567  -3.345678\n"
        " 2.00000 3.00000 4.00000 0.00000 0.00000 0.50000 0.00000 0.60000 0.70000\n"
    )
    (tmp_path / "a.gro").write_text(frame.format(1) + frame.format(9) + "\n")
    first, second = read_structures(tmp_path / "a.gro")
    np.testing.assert_allclose(first.positions, [[11.23456, 22.34567, -33.45678]])
    np.testing.assert_allclose(second.positions[0, 0], 91.23456)
    lower_triangular = [[20.0, 0.0, 0.0], [5.0, 30.0, 0.0], [6.0, 7.0, 40.0]]
    np.testing.assert_allclose(first.cell.array, lower_triangular)


def test_gro_without_a_box_is_not_periodic(tmp_path):
    text = GRO.replace("   1.82060   1.82060   1.82060", "   0.00000   0.00000   0.00000")
    (tmp_path / "a.gro").write_text(text)
    assert not read_structures(tmp_path / "a.gro")[0].pbc.any()


def test_damaged_gro_is_named(tmp_path):
    for text, fragment in (
        (GRO[:300], "does not hold the number of atoms"),
        (GRO.replace("    7\n", "    6\n"), "does not hold the number of atoms"),
        (GRO.replace("1.624", "x.xxx"), "line 3 has no three coordinates"),
        ("", "holds no structure"),
    ):
        (tmp_path / "a.gro").write_text(text)
        refused(tmp_path / "a.gro", fragment)


def test_beads_in_gro_need_a_complete_mapping(tmp_path):
    text = GRO.replace("  OW", " CG0").replace("HW1", "  W")
    (tmp_path / "a.gro").write_text(text.replace("SOL", "CG "))
    refused(tmp_path / "a.gro", "['CG0', 'HW2', 'W'] are no elements", "2 CG0")
    mapping = {"CG0": 1, "W": 2, "NA": 3}
    refused(tmp_path / "a.gro", "`species` lacks the names ['HW2']", species=mapping)
    mapping["HW2"] = 4
    refused(tmp_path / "a.gro", "labels, which have no mass", species=mapping)
    masses = {"CG0": 18.0}
    refused(tmp_path / "a.gro", "`masses` lacks", species=mapping, masses=masses)
    refused(tmp_path / "a.gro", "must be positive", species=mapping, masses=-1.0)
    refused(tmp_path / "a.gro", "'Qq', which is no element", species=mapping | {"W": "Qq"})
    (atoms,) = read_structures(tmp_path / "a.gro", species=mapping, masses=18.0)
    np.testing.assert_array_equal(atoms.numbers, [1, 2, 4, 1, 2, 4, 3])
    np.testing.assert_array_equal(atoms.get_masses(), 18.0)


def test_units_of_gro_are_fixed_by_the_format(tmp_path):
    (tmp_path / "a.gro").write_text(GRO)
    refused(tmp_path / "a.gro", "fixes its units", length_unit="nm")


PDB = """\
CRYST1   20.000   30.000   40.000  90.00 100.00  90.00 P 1           1
MODEL        1
ATOM      1  CA AALA A   1      11.104   6.134  -6.504  0.50  0.00           C
ATOM      2  CA BALA A   1      11.204   6.134  -6.504  0.50  0.00           C
ATOM      3 1HB  ALA A   1      12.104   6.134  -6.504  1.00  0.00
HETATM    4 CA    CA A   2      15.104   6.134  -6.504  1.00  0.00
ENDMDL
MODEL        2
ATOM      1  CA AALA A   1      21.104   6.134  -6.504  0.50  0.00           C
ATOM      3 1HB  ALA A   1      22.104   6.134  -6.504  1.00  0.00
HETATM    4 CA    CA A   2      25.104   6.134  -6.504  1.00  0.00
ENDMDL
END
"""


def test_pdb_models_share_the_cell_and_tell_carbon_from_calcium(tmp_path):
    (tmp_path / "a.pdb").write_text(PDB)
    first, second = read_structures(tmp_path / "a.pdb")
    for atoms in (first, second):
        assert atoms.get_chemical_symbols() == ["C", "H", "Ca"]
        np.testing.assert_allclose(atoms.cell.cellpar(), [20.0, 30.0, 40.0, 90.0, 100.0, 90.0])
    np.testing.assert_allclose(second.positions[:, 0], [21.104, 22.104, 25.104])


def test_pdb_with_a_cell_of_one_angstrom_is_free(tmp_path):
    cell = "CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1"
    (tmp_path / "a.pdb").write_text(cell + PDB[PDB.index("\n") :])
    assert not read_structures(tmp_path / "a.pdb")[0].pbc.any()


def test_damaged_pdb_is_named(tmp_path):
    (tmp_path / "a.pdb").write_text(PDB.replace("12.104", "**.***"))
    refused(tmp_path / "a.pdb", "line 5 cannot be read")


# Arrays


def test_npz_frames_with_forces_in_kcal(tmp_path):
    positions = np.random.default_rng(0).normal(size=(4, 5, 3)) * 5.0
    np.savez(tmp_path / "a.npz", coordinates=positions, forces=positions * 2.0, energies=range(4))
    structures = read_structures(
        tmp_path / "a.npz", species=["C", "N", "C", "C", "N"], energy_unit="kcal/mol"
    )
    assert len(structures) == 4
    np.testing.assert_array_equal(structures[2].positions, positions[2])
    labels = labels_of(structures[3])
    np.testing.assert_allclose(np.asarray(labels.forces), positions[3] * 2.0 * units.KCAL_PER_MOL)
    assert labels.energy == pytest.approx(3.0 * units.KCAL_PER_MOL, rel=1e-14)
    refused(tmp_path / "a.npz", "has no array `numbers`; give `species`, one for each of 5")
    refused(tmp_path / "a.npz", "one entry for each of 5", species=["C"])


def test_npz_in_nm_with_cell_and_numbers(tmp_path):
    positions = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    np.savez(tmp_path / "a.npz", positions=positions, numbers=[6, 8], cell=np.eye(3) * 0.5)
    (atoms,) = read_structures(tmp_path / "a.npz", length_unit="nm")
    np.testing.assert_allclose(atoms.positions, positions * 10.0)
    np.testing.assert_allclose(atoms.cell.array, np.eye(3) * 5.0)
    assert atoms.get_chemical_symbols() == ["C", "O"]
    refused(tmp_path / "a.npz", "nm read as Å")


def test_npz_that_would_unpickle_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", positions=np.array([object()], dtype=object))
    refused(tmp_path / "a.npz", "damaged")
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 no archive")
    refused(tmp_path / "b.npz", "damaged")
    np.savez(tmp_path / "c.npz", x=np.zeros(3))
    refused(tmp_path / "c.npz", "has no array `positions`", "['x']")


def frames_with_labels():
    """Three frames of five atoms in a cell, as arrays in the units of the kernel."""
    rng = np.random.default_rng(0)
    cell = np.diag([9.0, 10.0, 11.0])
    return {
        "positions": rng.uniform(0.5, 8.5, (3, 5, 3)),
        "numbers": np.array([6, 7, 6, 6, 8]),
        "cell": cell,
        "energies": np.array([-1.0, -2.0, -3.0]),
        "forces": rng.normal(size=(3, 5, 3)),
        "stress": rng.normal(size=(3, 6)),
        "charges": rng.normal(size=(3, 5)),
        "total_charge": np.array([0.0, 1.0, -1.0]),
    }


def write_hdf5(path, groups):
    import h5py

    with h5py.File(path, "w") as file:
        for group, arrays in groups.items():
            for name, array in arrays.items():
                file.create_dataset(f"{group}/{name}", data=array)


@pytest.mark.parametrize("kind", ["npz", "h5", "hdf5"])
def test_every_label_of_an_array_file_is_read(tmp_path, kind):
    arrays = frames_with_labels()
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        write_hdf5(path, {"": arrays})
    structures = read_structures(path, min_distance=0.0)
    for frame, atoms in enumerate(structures):
        labels = labels_of(atoms)
        np.testing.assert_array_equal(atoms.positions, arrays["positions"][frame])
        np.testing.assert_array_equal(atoms.numbers, arrays["numbers"])
        np.testing.assert_array_equal(atoms.cell.array, arrays["cell"])
        assert atoms.pbc.all()
        assert labels.energy == arrays["energies"][frame]
        np.testing.assert_array_equal(labels.forces, arrays["forces"][frame])
        np.testing.assert_array_equal(atoms.get_stress(), arrays["stress"][frame])
        assert labels.stress[0, 1] == arrays["stress"][frame, 5]  # xy is the last
        np.testing.assert_array_equal(labels.charges, arrays["charges"][frame])
        assert labels.total_charge == arrays["total_charge"][frame]
    assert len(structures) == 3


def test_groups_of_hdf5_are_molecules_with_units_and_names_of_their_own(tmp_path):
    """Written like SPICE: Bohr, Hartree, and gradients instead of forces."""
    rng = np.random.default_rng(1)
    groups = {
        name: {
            "conformations": rng.uniform(0.0, 20.0, (2, len(symbols), 3)),
            "atomic_numbers": np.array(symbols, dtype="S2"),
            "dft_total_energy": np.array([-1.0, -1.5]),
            "dft_total_gradient": rng.normal(size=(2, len(symbols), 3)),
        }
        for name, symbols in (("water", ["O", "H", "H"]), ("set/hydrogen chloride", ["H", "Cl"]))
    }
    write_hdf5(tmp_path / "a.h5", groups)
    structures = read_structures(
        tmp_path / "a.h5",
        length_unit="bohr",
        energy_unit="hartree",
        names={"energy": "dft_total_energy", "forces": "-dft_total_gradient"},
    )
    assert [str(atoms.symbols) for atoms in structures] == ["HCl", "HCl", "OH2", "OH2"]
    water = groups["water"]
    atoms, labels = structures[3], labels_of(structures[3])
    np.testing.assert_allclose(atoms.positions, water["conformations"][1] * units.BOHR)
    assert labels.energy == pytest.approx(-1.5 * units.HARTREE, rel=1e-14)
    expected = -water["dft_total_gradient"][1] * units.HARTREE / units.BOHR
    np.testing.assert_allclose(labels.forces, expected, rtol=1e-13)
    assert not atoms.pbc.any()


def test_faults_in_array_files_are_named(tmp_path):
    arrays = frames_with_labels()
    write_hdf5(tmp_path / "a.h5", {"one": arrays, "two": arrays | {"forces": np.zeros((3, 4, 3))}})
    refused(tmp_path / "a.h5", "group /two: `forces` must have shape (3, 5, 3), got (3, 4, 3)")
    refused(tmp_path / "a.h5", "group /one: has no array `E0` for `energy`", names={"energy": "E0"})
    refused(tmp_path / "a.h5", "`names` knows", "not ['force']", names={"force": "F"})
    write_hdf5(tmp_path / "b.h5", {"": arrays | {"numbers": np.array(["Qq"] * 5, "S2")}})
    refused(tmp_path / "b.h5", "['Qq'], which are no elements")
    write_hdf5(tmp_path / "c.h5", {"": {"x": np.zeros(3)}})
    refused(tmp_path / "c.h5", "has no array `positions`", "['x']")
    (tmp_path / "d.h5").write_bytes(b"no HDF5")
    refused(tmp_path / "d.h5", "damaged or no .h5 file")
    refused(tmp_path / "e.h5", "does not exist")
    (tmp_path / "a.gro").write_text(GRO)
    refused(tmp_path / "a.gro", "the format .gro fixes its names", names={"energy": "E"})


def test_labels_in_extxyz_have_the_names_they_are_given(tmp_path, silicon):
    """As many data sets write them, so that no reader takes them for its own results."""
    bare = silicon.copy()
    bare.info["REF_energy"] = -43.5
    bare.info["REF_stress"] = np.diag([1.0, 2.0, 3.0]) * 1e-3
    bare.arrays["REF_forces"] = np.arange(24.0).reshape(8, 3)
    plain = silicon.copy()
    ase.io.write(tmp_path / "a.extxyz", [bare, plain], format="extxyz")
    assert labels_of(read_structures(tmp_path / "a.extxyz")[0]).forces is None
    names = {"energy": "REF_energy", "forces": "-REF_forces", "stress": "REF_stress"}
    first, second = map(labels_of, read_structures(tmp_path / "a.extxyz", names=names))
    assert first.energy == -43.5
    np.testing.assert_allclose(np.asarray(first.forces), -np.arange(24.0).reshape(8, 3))
    np.testing.assert_allclose(np.asarray(first.stress), np.diag([1.0, 2.0, 3.0]) * 1e-3)
    assert (second.energy, second.forces) == (None, None)
    refused(tmp_path / "a.extxyz", "no frame has `DFT_energy`", names={"energy": "DFT_energy"})


def test_crystal_file_is_read_through_ase(tmp_path):
    ase.io.write(tmp_path / "a.cif", ase.build.bulk("Ti"))
    (atoms,) = read_structures(tmp_path / "a.cif")
    assert atoms.get_chemical_symbols() == ["Ti", "Ti"]


@pytest.mark.skipif("MOSAICMD_DATA" not in os.environ, reason="MOSAICMD_DATA is not set")
class TestReferenceData:
    """The reference data, with figures stated in its table of contents."""

    folder = Path(os.environ.get("MOSAICMD_DATA", ""))

    def test_coarse_water(self):
        """901 beads in a cube of 3 nm at 998.28 g/l, which the mass of water must give."""
        path = self.folder / "structures/water_901_spc_box.gro"
        refused(path, "['CG0'] are no elements; the file has 901 CG0")
        (atoms,) = read_structures(path, species={"CG0": 8}, masses={"CG0": 18.01528})
        np.testing.assert_allclose(atoms.cell.array, np.eye(3) * 30.0)
        np.testing.assert_allclose(atoms.positions[0], [0.28, 20.11, 16.71])
        density = atoms.get_masses().sum() / atoms.get_volume() / units.KG_PER_M3
        np.testing.assert_allclose(density, 998.28, rtol=2e-4)

    def test_diamond(self):
        (atoms,) = read_structures(self.folder / "structures/diamond_1000.pdb")
        assert str(atoms.symbols) == "C1000"
        np.testing.assert_allclose(atoms.cell.array, np.eye(3) * 17.834)
        shortest = np.sqrt(3.0) / 4.0 * 17.834 / 5.0
        distances = np.linalg.norm(atoms.positions[1:] - atoms.positions[0], axis=1)
        np.testing.assert_allclose(distances.min(), shortest, atol=2e-3)

    @pytest.mark.parametrize(
        ("name", "formula"),
        [
            ("alanine_dipeptide/ala2_heavy_10bead.gro", "C6N2O2"),
            ("alanine_dipeptide/ala2_gbsa_amber.pdb", "C6H12N2O2"),
            ("proteins/trp_cage_1L2Y_model1.pdb", "C98H150N27O29"),
        ],
    )
    def test_molecules_have_their_formula(self, name, formula):
        (atoms,) = read_structures(self.folder / name)
        assert atoms.get_chemical_formula() == formula

    def test_labels(self):
        """Counts, size of the forces and sign of the stress."""
        silicon = read_structures(self.folder / "si_test.extxyz.gz")
        assert len(silicon) == 18
        forces = np.concatenate([atoms.get_forces() for atoms in silicon])
        np.testing.assert_allclose(np.sqrt(np.mean(forces**2)), 0.950, atol=5e-4)
        np.testing.assert_allclose(np.abs(forces).max(), 6.61, atol=5e-3)
        for atoms in silicon:
            raw = np.array(atoms.info["raw_stress_kbar"])
            np.testing.assert_allclose(
                atoms.get_stress()[:3], -0.1 * raw[:3] * units.GPA, rtol=1e-5
            )

    def test_charges(self):
        for atoms in read_structures(self.folder / "longrange/carbon_chain_4g.extxyz.gz")[:5]:
            charges, total_charge = labels_of(atoms).charges, labels_of(atoms).total_charge
            assert charges is not None
            assert charges.shape == (len(atoms),)
            assert abs(charges.sum() - total_charge) < 2e-3

    def test_backbone_frames(self):
        path = self.folder / "alanine_dipeptide/ala2_cgnet_5bead_train.npz"
        structures = read_structures(
            path, species=["C", "N", "C", "C", "N"], energy_unit="kcal/mol"
        )
        assert len(structures) == 8000
        bonds = [np.linalg.norm(a.positions[1] - a.positions[0]) for a in structures[:100]]
        np.testing.assert_allclose(np.mean(bonds), 1.33, atol=0.02)  # an amide C-N bond, Å
