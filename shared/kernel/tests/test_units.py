"""Every constant against ASE, which derives its own from CODATA 2014."""

import ase.units
import numpy as np
import pytest

from mosaicmd.kernel import units


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (units.NANOMETER, ase.units.nm),
        (units.BOHR, ase.units.Bohr),
        (units.HARTREE, ase.units.Hartree),
        (units.JOULE, ase.units.J),
        (units.KJ_PER_MOL, ase.units.kJ / ase.units.mol),
        (units.KCAL_PER_MOL, ase.units.kcal / ase.units.mol),
        (units.SECOND, ase.units.second),
        (units.FEMTOSECOND, ase.units.fs),
        (units.PICOSECOND, 1000.0 * ase.units.fs),
        (units.KELVIN, ase.units.kB),
        (units.PASCAL, ase.units.Pascal),
        (units.BAR, ase.units.bar),
        (units.GPA, ase.units.GPa),
        (units.KG_PER_M3, ase.units.kg / ase.units.m**3),
        (units.COULOMB_CONSTANT, ase.units.Hartree * ase.units.Bohr),
    ],
)
def test_constant_equals_ase(ours, theirs):
    """The few 1e-9 left over are the precision to which CODATA states each constant."""
    np.testing.assert_allclose(ours, theirs, rtol=2e-8)


def test_time_unit_is_ten_femtoseconds_and_a_bit():
    np.testing.assert_allclose(1.0 / units.FEMTOSECOND, 10.1805, rtol=1e-5)


def test_planck_gives_the_energy_of_one_wavenumber():
    """h c at 1 cm⁻¹ is 0.12398 meV."""
    speed_of_light = 299792458.0e10 / units.SECOND
    np.testing.assert_allclose(units.PLANCK * speed_of_light / 1.0e8, 1.2398419739e-4, rtol=1e-8)
