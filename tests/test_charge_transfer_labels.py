"""Labels made anew are those that are shipped, which PySCF's own integrals gave."""

import gc
import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest

APP = Path(__file__).parents[1] / "apps" / "charge-transfer"


@pytest.fixture(scope="module")
def generate():
    """The script of the app, gone again afterwards."""
    pytest.importorskip("pyscf")
    sys.path.insert(0, str(APP))
    module = importlib.import_module("generate")
    with module.lib.with_omp_threads(1):  # more would wait for each other on busy cores
        yield module
    sys.path.remove(str(APP))
    for name in ("generate", "local_integrals"):
        sys.modules.pop(name)
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # PySCF leaves its files to be closed so


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PySCF, in its atoms
@pytest.mark.parametrize(("name", "file"), [("silver-", "ag3"), ("chain+", "c10")])
def test_labels_equal_those_with_integrals_of_all_orbitals_at_all_points(generate, name, file):
    """Structures of the first hundred, labelled before orbitals were left out."""
    frames: list[Any] = list(ase.io.iread(APP / "data" / f"{file}.extxyz.gz", ":"))
    given = next(a for a in frames if a.info["set"] == name)
    number = given.info["number"]
    assert number < 100
    atoms = generate.structure(name, number)
    np.testing.assert_allclose(atoms.positions, given.positions, atol=1e-7)
    free = generate.free_densities(atoms.get_chemical_symbols())
    found = generate.label(atoms, generate.CHARGE[name], free)
    np.testing.assert_allclose(found["energy"], given.get_potential_energy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["forces"], given.get_forces(), atol=2e-5)
    np.testing.assert_allclose(found["charges"], given.get_charges(), atol=1e-5)
