"""Physical quantities in settings and tables: a number, or a string with its unit.

The unit of a field stands at the end of its name, as everywhere in this project:
``timestep_fs`` is in femtoseconds, ``temperature_kelvin`` in kelvin, and a bare name is in
the internal system. Such a field takes a plain number in that unit, or a string with any
unit of the same dimension::

    class Settings(Config):
        cutoff: Length  # Å; "0.5 nm" becomes 5.0
        timestep_fs: Time
        kT: Temperature  # eV; "300 K" becomes 0.02585
        spacing: Annotated[float, quantity("nm")]  # a unit that the name does not state
"""

from __future__ import annotations

import functools
import math
import numbers
import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

from mosaicmd.kernel import units
from mosaicmd.kernel._suggest import suggest

# Per dimension, the internal unit first: name -> (exact multiple, of this base).
_UNITS: dict[str, dict[str, tuple[str, float]]] = {
    "length": {
        "A": ("1", units.ANGSTROM),
        "angstrom": ("1", units.ANGSTROM),
        "pm": ("0.01", units.ANGSTROM),
        "nm": ("10", units.ANGSTROM),
        "bohr": ("1", units.BOHR),
    },
    "time": {
        "t": ("1", 1.0),
        "fs": ("1", units.FEMTOSECOND),
        "ps": ("1e3", units.FEMTOSECOND),
        "ns": ("1e6", units.FEMTOSECOND),
        "us": ("1e9", units.FEMTOSECOND),
    },
    "rate": {
        "per_t": ("1", 1.0),
        "per_fs": ("1", 1.0 / units.FEMTOSECOND),
        "per_ps": ("1e-3", 1.0 / units.FEMTOSECOND),
        "per_ns": ("1e-6", 1.0 / units.FEMTOSECOND),
    },
    "pressure": {
        "eV_A3": ("1", 1.0),
        "Pa": ("1", units.PASCAL),
        "kPa": ("1e3", units.PASCAL),
        "MPa": ("1e6", units.PASCAL),
        "GPa": ("1e9", units.PASCAL),
        "bar": ("1e5", units.PASCAL),
        "kbar": ("1e8", units.PASCAL),
        "atm": ("101325", units.PASCAL),
    },
    "energy": {
        "eV": ("1", 1.0),
        "meV": ("1e-3", 1.0),
        "kJ_mol": ("1", units.KJ_PER_MOL),
        "kcal_mol": ("4.184", units.KJ_PER_MOL),
        "hartree": ("1", units.HARTREE),
    },
    "temperature": {"eV": ("1", 1.0), "K": ("1", units.KELVIN), "kelvin": ("1", units.KELVIN)},
    "force": {
        "eV_A": ("1", 1.0),
        "meV_A": ("1e-3", 1.0),
        "kJ_mol_nm": ("0.1", units.KJ_PER_MOL),
        "kJ_mol_A": ("1", units.KJ_PER_MOL),
        "kcal_mol_A": ("4.184", units.KJ_PER_MOL),
        "hartree_bohr": ("1", units.HARTREE / units.BOHR),
    },
    "mass": {"u": ("1", 1.0), "amu": ("1", 1.0), "g_mol": ("1", 1.0)},
    "density": {
        "u_A3": ("1", 1.0),
        "kg_m3": ("1", units.KG_PER_M3),
        "g_l": ("1", units.KG_PER_M3),
        "g_cm3": ("1e3", units.KG_PER_M3),
    },
    "charge": {"e": ("1", 1.0)},
    "angle": {"rad": ("1", 1.0), "deg": ("1", math.pi / 180.0), "degrees": ("1", math.pi / 180.0)},
}
_NUMBER = re.compile(
    r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*((?:1?/)?\s*[^\W\d_][^,]*?)?\s*"
)
_SPELLINGS = {"\u00c5": "A", "\u212b": "A", "°": "deg", "³": "3", "⁻¹": "-1", "^": "", " ": ""}


def convert(value: object, dimension: str, unit: str | None = None) -> float:
    """A number, or a string with its unit, as a number in ``unit``.

    Decimal multiples are exact: ``convert("0.5 nm", "length")`` is 5.0, and a unit
    converted to itself leaves the number as written.

    Args:
        value: a number that is already in ``unit``, or a string such as ``"0.5 nm"``.
        dimension: ``"length"``, ``"time"``, ``"temperature"``, ...
        unit: the unit of the result; ``None`` for the internal one.

    Raises:
        ValueError: for anything that is not a finite quantity of this dimension.
    """
    table = _UNITS[dimension]
    unit = next(iter(table)) if unit is None else _normal(unit)
    example = "300 K" if dimension == "temperature" else f"1.5 {_spell(unit)}"
    remedy = f'give a number in {_spell(unit)} or a string such as "{example}"'
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        if match is None:
            raise ValueError(f"{value!r} is no number with a unit; {remedy}")
        number, name = Fraction(match[1]), _normal(match[2] or "") or unit
        if name not in table:
            raise ValueError(f"{_complaint(value, match[2], dimension)}; {remedy}")
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{value!r} is no quantity; {remedy}")
    elif not math.isfinite(value):
        raise ValueError(f"{value!r} is not finite; {remedy}")
    else:
        number, name = Fraction(float(value)), unit
    (scale, base), (target_scale, target_base) = table[name], table[unit]
    exact = number * Fraction(scale)  # in `base`
    if base == target_base:
        return float(exact / Fraction(target_scale))
    return float(exact) * base / target_base / float(Fraction(target_scale))


def unit_of_name(name: str, dimension: str) -> str | None:
    """The unit of this dimension that ends a name: ``"fs"`` for ``timestep_fs``, or none."""
    found = [unit for unit in _UNITS[dimension] if name.lower().endswith(f"_{unit.lower()}")]
    return max(found, key=len, default=None)


def quantity(unit: str) -> BeforeValidator:
    """Marker of a field whose unit is not in its name, to stand in ``Annotated[float, ...]``.

    Raises:
        ValueError: for an unknown unit.
    """
    name = _normal(unit)
    for dimension, table in _UNITS.items():
        if name in table:
            return BeforeValidator(functools.partial(convert, dimension=dimension, unit=name))
    known = [_spell(name) for table in _UNITS.values() for name in table]
    raise ValueError(f"unknown unit {unit!r}{suggest(unit, known)}; known: {', '.join(known)}")


def _convert_field(dimension: str, value: Any, info: ValidationInfo) -> float:
    """Validates a field whose name states its unit, or that is in internal units."""
    name = info.field_name or ""
    unit = unit_of_name(name, dimension)
    if unit is None and dimension == "temperature" and not name.endswith("kT"):
        raise TypeError(f"name the field `{name}_kelvin`, or `kT` for a thermal energy in eV")
    if unit is None and any(unit_of_name(name, other) for other in _UNITS):
        raise TypeError(
            f"field `{name}` is declared as {_article(dimension)}, but its name says otherwise"
        )
    return convert(value, dimension, unit)


def _normal(unit: str) -> str:
    """``"kJ/mol"`` as ``"kJ_mol"``, ``"1/ps"`` and ``"ps^-1"`` as ``"per_ps"``."""
    for old, new in _SPELLINGS.items():
        unit = unit.replace(old, new)
    if unit.startswith(("1/", "/")) or unit.endswith("-1"):
        unit = "per_" + unit.removeprefix("1").removeprefix("/").removesuffix("-1")
    unit = unit.replace("/", "_")
    return {"kj_mol": "kJ_mol", "Angstrom": "angstrom", "Ha": "hartree"}.get(unit, unit)


def _spell(name: str) -> str:
    """The unit as one would write it: ``"kJ/mol"``, ``"1/ps"``."""
    return f"1/{name[4:]}" if name.startswith("per_") else name.replace("_", "/")


def _complaint(value: str, unit: str, dimension: str) -> str:
    for other, table in _UNITS.items():
        if _normal(unit) in table:
            return f"{value!r} is {_article(other)}, where {_article(dimension)} belongs"
    known = [_spell(name) for name in _UNITS[dimension]]
    return (
        f"{value!r} has the unknown unit {unit!r}{suggest(unit, known)}; "
        f"units of {dimension}: {', '.join(known)}"
    )


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "ae" else f"a {noun}"


def _field(dimension: str) -> BeforeValidator:
    return BeforeValidator(functools.partial(_convert_field, dimension))


Length = Annotated[float, _field("length")]
Time = Annotated[float, _field("time")]
Rate = Annotated[float, _field("rate")]
Temperature = Annotated[float, _field("temperature")]
Pressure = Annotated[float, _field("pressure")]
Energy = Annotated[float, _field("energy")]
Force = Annotated[float, _field("force")]
Mass = Annotated[float, _field("mass")]
Density = Annotated[float, _field("density")]
Charge = Annotated[float, _field("charge")]
Angle = Annotated[float, _field("angle")]
