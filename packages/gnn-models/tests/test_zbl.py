"""Nuclear repulsion against LAMMPS, its closed form, and the contract."""

import json

import jax
import numpy as np
import pytest
from ase.data import covalent_radii

from mosaicmd.gnn_models import ZBLConfig, zbl
from mosaicmd.kernel.config import ConfigError
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.potentials import build_potential, evaluate
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.testing import check_potential, random_system

# A triclinic cell of Si and C as LAMMPS (22 Jul 2025, update 4) sees it, from
#   units metal; region box prism 0 6.0 0 6.5 0 7.0 1.1 -0.7 0.9
#   pair_style zbl 1.5 3.2
#   pair_coeff 1 1 14.0 14.0; pair_coeff 1 2 14.0 6.0; pair_coeff 2 2 6.0 6.0
LAMMPS_CELL = [[6.0, 0.0, 0.0], [1.1, 6.5, 0.0], [-0.7, 0.9, 7.0]]
LAMMPS_SPECIES = [14, 6, 14, 6, 6, 14]
LAMMPS_POSITIONS = [
    [0.3, 0.4, 0.5],
    [1.5, 0.9, 0.8],
    [4.1, 3.0, 2.2],
    [3.2, 4.4, 3.1],
    [2.0, 2.6, 5.3],
    [5.2, 1.6, 1.1],
]
LAMMPS_ENERGY = 16.2326717189  # eV
LAMMPS_FORCES = [  # eV/Å
    [-17.0591546868, -19.9990775592, -11.0666234765],
    [26.5272530812, 10.3578988239, 6.3508372866],
    [-0.0486634406, -0.5989380749, 0.0486634406],
    [-2.3324995828, 3.6410432071, 2.3290330765],
    [0.0306430973, 0.0169622253, -0.0648797379],
    [-7.1175784684, 6.5821113777, 2.4029694107],
]
LAMMPS_PRESSURE_BAR = [  # xx, yy, zz, yz, xz, xy
    276426.871022,
    153180.116438,
    56817.7933095,
    90520.972234,
    -15001.3686433,
    -27570.9263507,
]
LAMMPS_BAR = 1.0 / 1.6021765e6  # its constant, eV/Å³


def pair(potential, numbers, distance):
    system = make_system([[0.0, 0.0, 0.0], [0.0, 0.0, distance]], np.array(numbers))
    return evaluate(potential.energy, {}, system, host_graph(system, potential.cutoff))


@pytest.mark.parametrize("ends", [{}, {"inner": 1.0, "outer": 4.0}])
def test_contract(ends):
    potential = zbl(ZBLConfig(species=(14, 1), **ends))
    system = random_system(0, species=(1, 14), min_distance=1.2)
    check_potential(potential, potential.init(jax.random.key(0)), system)


def test_lammps_has_the_same_energy_forces_and_stress():
    """Its Coulomb constant differs from CODATA 2014 by 3e-8 of itself."""
    system = make_system(LAMMPS_POSITIONS, np.array(LAMMPS_SPECIES), cell=np.array(LAMMPS_CELL))
    potential = zbl(ZBLConfig(species=(6, 14), inner=1.5, outer=3.2))
    result = evaluate(potential.energy, {}, system, host_graph(system, 3.2), stress=True)
    np.testing.assert_allclose(result.energy, LAMMPS_ENERGY, rtol=1e-7)
    np.testing.assert_allclose(result.forces, LAMMPS_FORCES, rtol=1e-7, atol=1e-6)
    pressure = -np.asarray(result.stress)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    np.testing.assert_allclose(pressure, np.multiply(LAMMPS_PRESSURE_BAR, LAMMPS_BAR), rtol=1e-6)


def test_inside_the_force_is_that_of_the_universal_repulsion():
    """Two silicon atoms at 0.5 Å: ``x = r / a`` with ``a = 0.46850 / (2 14^0.23)`` Å."""
    length = 0.46850 / (2.0 * 14.0**0.23)
    x, charge = 0.5 / length, 14.399645 * 14.0**2
    weights = np.array([0.18175, 0.50986, 0.28022, 0.02817])
    decays = np.array([3.19980, 0.94229, 0.40290, 0.20162])
    terms = weights * np.exp(-decays * x)
    expected = charge / 0.5 * (terms.sum() / 0.5 + (decays * terms).sum() / length)
    forces = pair(zbl(ZBLConfig(species=(14,))), (14, 14), 0.5).forces
    np.testing.assert_allclose(forces[:, 2], [-expected, expected], rtol=1e-7)


@pytest.mark.parametrize("numbers", [(1, 1), (1, 92), (6, 8), (29, 29), (79, 92)])
def test_by_default_it_repels_up_to_the_sum_of_covalent_radii(numbers):
    potential = zbl(ZBLConfig(species=tuple(sorted(set(numbers)))))
    end = covalent_radii[list(numbers)].sum()
    assert pair(potential, numbers, end).energy == 0.0
    previous = 0.0
    for share in (0.999, 0.9, 0.75, 0.6, 0.5, 0.4, 0.2):
        result = pair(potential, numbers, share * end)
        assert result.energy > 0.0
        assert result.forces[1, 2] > previous
        previous = result.forces[1, 2]


def test_configuration_round_trip():
    potential = build_potential("zbl", {"species": [6, 14], "inner": "0.1 nm", "outer": 2.0})
    again = build_potential("zbl", json.loads(json.dumps(potential.config)))
    assert again.config == potential.config
    assert (again.architecture, again.cutoff, again.species) == ("zbl", 2.0, (6, 14))
    assert again.init(jax.random.key(0)) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"species": [14, 14]}, "distinct positive labels"),
        ({"species": [119]}, "`species` 119 is no element"),
        ({"species": [97]}, "element 97 has no covalent radius; give `outer`"),
        ({"inner": 2.0, "outer": 1.5}, r"`inner` 2.0 must be below `outer`, here 1.500 Å"),
        ({"inner": 2.3}, r"`inner` 2.3 must be below `outer`, here 2.220 Å"),
        ({"outerr": 2.0}, "did you mean `outer`"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build_potential("zbl", {"species": [14], **change})
