"""Quantities with units: exact decimal conversion, and what is refused."""

from typing import Annotated

import numpy as np
import pytest

from mosaicmd.kernel import units
from mosaicmd.kernel.config import Config, ConfigError, load_config
from mosaicmd.kernel.quantities import (
    Density,
    Length,
    Pressure,
    Rate,
    Temperature,
    Time,
    convert,
    quantity,
    unit_of_name,
)


@pytest.mark.parametrize(
    ("text", "dimension", "unit", "expected"),
    [
        ("0.5 nm", "length", None, 5.0),
        ("0.3 nm", "length", "A", 3.0),
        ("3 Å", "length", "nm", 0.3),
        ("0.1 ps", "time", "fs", 100.0),
        ("2e-3ns", "time", "ps", 2.0),
        ("296.15 K", "temperature", "kelvin", 296.15),
        ("1 bar", "pressure", "bar", 1.0),
        ("0.7 GPa", "pressure", "bar", 7000.0),
        ("1 atm", "pressure", "bar", 1.01325),
        ("998.28 g/l", "density", "kg_m3", 998.28),
        ("0.99828 g/cm^3", "density", "kg_m3", 998.28),
        ("1 kcal/mol", "energy", "kj_mol", 4.184),
        ("10 kJ/mol/nm", "force", "kJ_mol_A", 1.0),
        ("2 ps^-1", "rate", "per_ps", 2.0),
        ("1/ps", "rate", "per_ps", 1.0),
        ("1.5", "time", "ps", 1.5),
    ],
)
def test_decimal_multiples_are_exact(text, dimension, unit, expected):
    assert convert(text, dimension, unit) == expected


@pytest.mark.parametrize(
    ("text", "dimension", "internal"),
    [
        ("300 K", "temperature", 300.0 * units.KELVIN),
        ("1 fs", "time", units.FEMTOSECOND),
        ("1 1/ps", "rate", 1.0 / units.PICOSECOND),
        ("1 bar", "pressure", units.BAR),
        ("3 GPa", "pressure", 3.0 * units.GPA),
        ("1 kcal/mol", "energy", units.KCAL_PER_MOL),
        ("1 hartree", "energy", units.HARTREE),
        ("2 bohr", "length", 2.0 * units.BOHR),
        ("1 g/cm3", "density", units.GRAM_PER_CM3),
        ("18.015 g/mol", "mass", 18.015),
        ("1 kcal/mol/A", "force", units.KCAL_PER_MOL),
        ("180 deg", "angle", np.pi),
    ],
)
def test_internal_value_agrees_with_the_constants(text, dimension, internal):
    np.testing.assert_allclose(convert(text, dimension), internal, rtol=1e-14)


class Settings(Config):
    cutoff: Length = 5.0
    spacing_nm: Length = 0.1
    timestep_fs: Time = 1.0
    friction_per_ps: Rate = 1.0
    kT: Temperature = 0.025
    temperature_kelvin: Temperature = 300.0
    target_pressure_bar: Pressure = 1.0
    density_g_cm3: Density = 1.0
    widths: tuple[Length, ...] = ()
    optional_nm: Length | None = None
    bare: Annotated[float, quantity("ps")] = 1.0


def test_a_plain_number_is_in_the_unit_of_the_name():
    settings = load_config(Settings, {"cutoff": 7, "spacing_nm": 0.2, "bare": np.float32(2.0)})
    assert (settings.cutoff, settings.spacing_nm, settings.bare) == (7.0, 0.2, 2.0)


def test_a_string_is_converted_to_the_unit_of_the_name():
    settings = load_config(
        Settings,
        {
            "spacing_nm": "2 A",
            "timestep_fs": "0.002 ps",
            "friction_per_ps": "0.001 1/fs",
            "kT": "300 K",
            "temperature_kelvin": "296.15 K",
            "target_pressure_bar": "0.1 MPa",
            "density_g_cm3": "998.28 g/l",
            "widths": ["1 nm", 2.0],
            "optional_nm": "15 A",
            "bare": "500 fs",
        },
    )
    np.testing.assert_allclose(settings.kT, 300.0 * units.KELVIN, rtol=1e-15)
    assert settings.model_dump(exclude={"kT", "cutoff"}) == {
        "spacing_nm": 0.2,
        "timestep_fs": 2.0,
        "friction_per_ps": 1.0,
        "temperature_kelvin": 296.15,
        "target_pressure_bar": 1.0,
        "density_g_cm3": 0.99828,
        "widths": (10.0, 2.0),
        "optional_nm": 1.5,
        "bare": 0.5,
    }


@pytest.mark.parametrize(
    ("field", "value", "fragments"),
    [
        ("timestep_fs", "0.5 nm", ["is a length, where a time belongs", "number in fs"]),
        ("kT", "25 kJ/mol", ["is an energy, where a temperature belongs", '"300 K"']),
        ("cutoff", "0.5 nmm", ["unknown unit 'nmm'", "did you mean `nm`?"]),
        ("target_pressure_bar", "1,0 bar", ["no number with a unit", '"1.5 bar"']),
        ("cutoff", True, ["no quantity"]),
        ("cutoff", [1.0], ["no quantity"]),
        ("cutoff", float("inf"), ["not finite"]),
        ("temperature_kelvin", "25 °C", ["number with a unit", '"300 K"']),
    ],
)
def test_refused_quantity_names_field_value_and_remedy(field, value, fragments):
    with pytest.raises(ConfigError) as caught:
        load_config(Settings, {field: value})
    message = str(caught.value)
    assert f"{field}: got {value!r}" in message
    for fragment in fragments:
        assert fragment in message


def test_a_field_whose_name_and_dimension_disagree_is_refused():
    class Wrong(Config):
        timestep_nm: Time = 1.0

    class Ambiguous(Config):
        temperature: Temperature = 300.0

    with pytest.raises(TypeError, match="declared as a time"):
        load_config(Wrong, {"timestep_nm": 1.0})
    with pytest.raises(TypeError, match="temperature_kelvin"):
        load_config(Ambiguous, {"temperature": 300.0})


def test_unit_of_name_takes_the_longest_unit():
    assert unit_of_name("friction_per_ps", "rate") == "per_ps"
    assert unit_of_name("free_energy_kj_mol", "energy") == "kJ_mol"
    assert unit_of_name("r_A", "length") == "A"
    assert unit_of_name("cutoff", "length") is None


def test_unknown_unit_in_an_annotation_is_refused():
    with pytest.raises(ValueError, match="did you mean `fs`"):
        quantity("fss")
