"""The titanium app with few steps: complete output."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from app_runs import app_command, finished

APP = Path(__file__).parents[1] / "apps" / "titanium"
MODELS = ("dft", "exp", "fused")


def command(folder):
    """Few steps from the start; one temperature to learn from, another to validate at."""
    settings = yaml.safe_load((APP / "config" / "quick.yaml").read_text())
    settings["labels"] |= {"n_steps": 10}
    settings["experiment"] |= {"temperatures_kelvin": [323], "n_equilibration": 5, "n_rest": 6}
    settings["experiment"] |= {"n_frames": 40, "n_updates": 1, "average_last": 1}
    settings["fusion"] |= {"n_rounds": 2, "label_steps": 2}
    validation = settings["validation"]
    validation |= {"temperatures_kelvin": [323, 373], "n_equilibration": 5, "n_frames": 20}
    validation["expansion"] |= {"temperatures_kelvin": [323, 373], "n_equilibration": 5}
    validation["expansion"] |= {"n_frames": 20}
    validation["stability"] |= {"every": 10, "n_frames": 10}
    return app_command(APP, folder, settings)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = finished(command(folder))
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.slow
def test_output_is_complete(undisturbed):
    metrics = json.loads((undisturbed / "results.json").read_text())["metrics"]
    for name in MODELS:
        for quantity in ("elastic_mape_heldout", "force_rmse", "pressure_max_abs", "stable"):
            assert set(metrics[f"{quantity}_{name}"]) == {
                "value",
                "error",
                "unit",
                "reference",
                "source",
            }
    report = (undisturbed / "report.html").read_text()
    assert report.count("<svg") == 5
    assert "src=" not in report


@pytest.fixture
def modules(monkeypatch):
    """The app, gone again afterwards: other apps have modules of the same names."""
    monkeypatch.syspath_prepend(str(APP))
    before = set(sys.modules)
    yield {name: importlib.import_module(name) for name in ("app", "titanium", "validation")}
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(APP)):
            del sys.modules[name]


def test_simulations_that_broke_are_counted_and_left_out(modules):
    """Constants 10 % above measured ones at 173 K; nothing at 473 K, nor at constant pressure."""
    app, titanium, validation = (modules[name] for name in ("app", "titanium", "validation"))
    table = titanium.measured()
    rows = [np.append(1.1 * table[173.0].constants, 0.2), np.full(6, np.nan)]
    kelvin = np.array([173.0, 473.0])
    elasticity = validation.Series(kelvin, np.array(rows), 0.0 * np.array(rows))
    cells = validation.Series(kelvin, np.full((2, 2), np.nan), np.full((2, 2), np.nan))
    errors = {"energy_mev_per_atom": 1.0, "forces_mev_per_angstrom": 2.0, "stress_gpa": 3.0}
    labels = {"all": {f"rmse_{name}": value for name, value in errors.items()}}
    branches = (np.zeros(2), np.ones(2))
    found = validation.Findings(labels, elasticity, cells, branches, None, 1.0, 0.1)
    settings = titanium.TitaniumConfig(**yaml.safe_load((APP / "config/quick.yaml").read_text()))
    metrics = app.compare(settings, {"exp": found})
    assert metrics["elastic_mape_heldout_exp"].value == pytest.approx(10.0)
    assert metrics["pressure_max_abs_exp"].value == pytest.approx(0.2)
    assert metrics["broken_runs_exp"].value == 3
    assert "elastic_mape_learned_exp" not in metrics
    assert not {"expansion_a_exp", "bcc_above_hcp_exp"} & set(metrics)
    assert all(np.isfinite(metric.value) for metric in metrics.values())
