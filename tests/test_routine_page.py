"""The page on routines runs as printed, prints what it says, and finds argon."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "write-your-own-routine.md"
BLOCKS = re.findall(
    r"<!-- run -->\n```python\n(.*?)```\n*(?:```text\n(.*?)```)?", PAGE.read_text(), re.DOTALL
)
NUMBER = re.compile(r"\d+\.\d+")


def ran(blocks):
    """What each block prints, and the names that all of them define."""
    names, printed = {}, []
    for source, _ in blocks:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(source, str(PAGE), "exec"), names)
        printed.append(output.getvalue())
    return names, printed


def test_labels_and_gas_give_what_the_page_prints():
    """Digits may differ in the last place; epsilon and sigma of the gas are those of 1954."""
    names, printed = ran(BLOCKS[:3])
    for (_, expected), found in zip(BLOCKS[:3], printed, strict=True):
        assert NUMBER.sub("", expected) == NUMBER.sub("", found)
        for wanted, value in zip(NUMBER.findall(expected), NUMBER.findall(found), strict=True):
            assert float(value) == pytest.approx(float(wanted), abs=0.15)
    assert all(len(source.splitlines()) <= 80 for source, _ in BLOCKS)
    gas = names["train"](names["from_gas"](0.5), names["start"], 20, quiet=True).params
    assert float(gas["epsilon"]) / names["units"].KELVIN == pytest.approx(119.8, rel=0.01)
    assert float(gas["sigma"]) == pytest.approx(3.405, rel=0.01)
    residual = names["virial_coefficients"](gas) - names["B"]
    assert np.sqrt(np.mean(np.square(residual))) < 0.6  # cm³/mol


@pytest.mark.slow
def test_the_heat_of_vaporisation_gives_the_energy_that_the_page_says():
    """Within 5 K, three times the error of a simulation this short."""
    _, printed = ran(BLOCKS)
    (epsilon, _) = map(float, NUMBER.findall(printed[-1]))
    assert abs(epsilon - 117.0) < 5.0
