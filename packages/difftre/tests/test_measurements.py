"""The embedded curves are those of the reference data, and behave like what they are."""

import os
from pathlib import Path

import numpy as np
import pytest

from mosaicmd.difftre import load_measurement

DATA = os.environ.get("MOSAICMD_DATA")


@pytest.mark.skipif(DATA is None, reason="MOSAICMD_DATA is not set")
@pytest.mark.parametrize(
    ("name", "file", "scale"),
    [("water_oo_rdf", "water_OO_RDF.csv", 10.0), ("water_ooo_adf", "water_OOO_ADF.csv", 1.0)],
)
def test_curve_equals_the_reference_file(name, file, scale):
    path = Path(str(DATA)) / "experimental" / file
    axis, value = np.loadtxt(path, delimiter=",", skiprows=1).T
    measurement = load_measurement(name)
    np.testing.assert_allclose(measurement.axis, axis * scale, rtol=1e-12)
    np.testing.assert_array_equal(measurement.value, value)


def test_first_peak_and_normalisation_are_those_of_water():
    """X-rays see the first peak at 2.80 Å, 2.57 high (Skinner et al., JCP 141, 214507 (2014))."""
    g = load_measurement("water_oo_rdf")
    r = np.linspace(2.0, 4.0, 2001)
    assert abs(r[g.at(r).argmax()] - 2.80) < 0.06
    assert abs(g.at(r).max() - 2.57) < 0.25
    assert np.abs(g.at(np.linspace(8.0, 10.0, 200)) - 1.0).max() < 0.03
    angles = load_measurement("water_ooo_adf")
    np.testing.assert_allclose(np.trapezoid(angles.value, angles.axis), 1.0, atol=0.01)


def test_unknown_names_and_points_outside_are_errors():
    with pytest.raises(ValueError, match="did you mean `water_oo_rdf`"):
        load_measurement("water_oo_rd")
    with pytest.raises(ValueError, match="leave the measured range"):
        load_measurement("water_oo_rdf").at(np.array([40.0]))
