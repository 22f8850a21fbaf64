"""The internal unit system (eV, Å, u, e) and the constants that lead into it.

Multiply a value by a constant to bring it in, divide to bring it out:
``timestep = 0.5 * FEMTOSECOND`` and ``pressure_bar = pressure / BAR``. The time unit
``Å sqrt(u / eV)`` follows from the other three, so Newton's equation needs no factor.

References:
    CODATA 2014 (Mohr, Newell & Taylor, Rev. Mod. Phys. 88, 035009 (2016)), the set
    that ASE and JAX-MD use by default.
"""

from __future__ import annotations

import math

_ELEMENTARY_CHARGE_C = 1.6021766208e-19
_ATOMIC_MASS_KG = 1.660539040e-27
_BOLTZMANN_J_PER_K = 1.38064852e-23
_AVOGADRO = 6.022140857e23
_VACUUM_PERMITTIVITY_F_PER_M = 1.0 / (4.0e-7 * math.pi * 299792458.0**2)
_HARTREE_J = 4.359744650e-18
_PLANCK_J_S = 6.626070040e-34

EV = 1.0
ANGSTROM = 1.0
AMU = 1.0
ELEMENTARY_CHARGE = 1.0

NANOMETER = 10.0
BOHR = 0.52917721067
HARTREE = _HARTREE_J / _ELEMENTARY_CHARGE_C
JOULE = 1.0 / _ELEMENTARY_CHARGE_C
KJ_PER_MOL = 1.0e3 / _AVOGADRO * JOULE
KCAL_PER_MOL = 4.184 * KJ_PER_MOL

SECOND = 1.0e10 * math.sqrt(_ELEMENTARY_CHARGE_C / _ATOMIC_MASS_KG)
FEMTOSECOND = 1.0e-15 * SECOND
PICOSECOND = 1.0e-12 * SECOND

KELVIN = _BOLTZMANN_J_PER_K / _ELEMENTARY_CHARGE_C
"""Boltzmann's constant: temperatures enter as ``kT = temperature_kelvin * KELVIN``."""

PASCAL = 1.0e-30 * JOULE
BAR = 1.0e5 * PASCAL
GPA = 1.0e9 * PASCAL

GRAM_PER_CM3 = 1.0e-3 / _ATOMIC_MASS_KG * 1.0e-24
KG_PER_M3 = 1.0e-3 * GRAM_PER_CM3

COULOMB_CONSTANT = 1.0e10 * _ELEMENTARY_CHARGE_C / (4.0 * math.pi * _VACUUM_PERMITTIVITY_F_PER_M)
"""``1 / (4 pi epsilon_0)`` in eV Å/e²."""

PLANCK = _PLANCK_J_S * JOULE * SECOND
