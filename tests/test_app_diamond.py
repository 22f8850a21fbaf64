"""The diamond app on a small cell: complete output, learning, exact resume after a kill."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from app_runs import app_command, finished, killed

from mosaicmd.kernel.config import load_config
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.model_files import load_model

APP = Path(__file__).parents[1] / "apps" / "diamond"


def command(folder):
    """Three updates and a short validation of 64 atoms."""
    settings = yaml.safe_load((APP / "config" / "quick.yaml").read_text())
    settings["repeats"] = 2
    settings["training"] |= {"n_equilibration": 20, "n_frames": 120}
    settings["training"] |= {"n_updates": 3, "average_last": 1}
    settings["validation"] |= {"n_equilibration": 20, "n_frames": 200}
    return app_command(APP, folder, settings)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = finished(command(folder))
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_output_is_complete(undisturbed):
    metrics = json.loads((undisturbed / "results.json").read_text())["metrics"]
    assert list(metrics) == ["c11", "c12", "c44", "pressure", "stress_max_abs", "raman_thz"]
    for metric in metrics.values():
        assert set(metric) == {"value", "error", "unit", "reference", "source"}
    report = (undisturbed / "report.html").read_text()
    assert report.count("<svg") == 3
    assert "src=" not in report


def test_shear_becomes_stiffer_with_every_update(undisturbed):
    """Silicon's ratios start at 210 GPa; error bars are 15 GPa."""
    history = read_metrics(undisturbed / "training" / "metrics.jsonl")
    c44 = [line["value/ambient/elasticity/2"] for line in history]
    assert c44[0] < 300.0
    assert c44[2] > c44[0] + 60.0
    assert history[2]["loss"] < 0.7 * history[0]["loss"]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(undisturbed, tmp_path):
    arguments = command(tmp_path)
    killed(arguments, tmp_path / "out" / "training" / "checkpoints", "step-*.safetensors")
    assert not (tmp_path / "out" / "results.json").exists()
    done = finished(arguments)
    assert done.returncode == 0, done.stderr
    for name in ("results.json", "report.html", "model/weights.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.fixture(scope="module")
def diamond():
    """Module of the app, which is not a package."""
    sys.path.insert(0, str(APP))
    yield importlib.import_module("diamond")
    sys.path.remove(str(APP))
    for name in ("app", "diamond", "figures", "matching"):
        sys.modules.pop(name, None)


def network_settings():
    """Of `full`, for 64 atoms and a network of one block."""
    settings = yaml.safe_load((APP / "config" / "full.yaml").read_text()) | {"repeats": 2}
    small = {"n_features": 8, "species_features": 4, "n_blocks": 1, "n_spherical": 3}
    settings["model"]["network"] |= small
    settings["matching"] |= {"n_cells": 20, "n_steps": 600, "learning_rate": 0.01}
    settings["training"] |= {"replicas": 2, "n_equilibration": 4, "n_frames": 10, "n_updates": 1}
    settings["training"] |= {"average_last": 1, "direct_every": 5}
    settings["validation"] |= {"replicas": 2, "n_equilibration": 4, "n_frames": 10}
    return settings


@pytest.mark.slow
def test_a_network_takes_over_the_forces_of_another_model(diamond, tmp_path):
    """Silicon shrunk is the prior, so a stiffer third body is what there is to learn."""
    matching = importlib.import_module("matching")
    settings = load_config(diamond.DiamondConfig, network_settings())
    classical = load_config(diamond.DiamondConfig, APP / "config" / "quick.yaml")
    teacher = diamond.build_potential(classical.model)
    stiffer = jax.tree.map(lambda leaf: 1.2 * leaf, teacher.init(jax.random.key(0)))
    potential = diamond.build_potential(settings.model)
    initial = potential.init(jax.random.key(0))
    matching.match(settings, potential, initial, (teacher, stiffer), tmp_path)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    errors = [line["rmse_forces_mev_per_angstrom"] for line in metrics]
    assert np.mean(errors[-10:]) < 0.5 * errors[0]


@pytest.mark.slow
def test_a_network_goes_from_matching_to_the_report(diamond, undisturbed, tmp_path):
    """With what the small run above has learned as its teacher."""
    arguments = app_command(APP, tmp_path, network_settings())
    out = tmp_path / "out"
    killed(arguments, out, "config.yaml")
    shutil.rmtree(out / "quick", ignore_errors=True)
    shutil.copytree(undisturbed / "model", out / "quick" / "model")
    done = finished(arguments)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "results.json").read_text())["metrics"]
    assert all(np.isfinite(metric["value"]) for metric in metrics.values())
    _, before = load_model(out / "matching" / "model")
    _, after = load_model(out / "model")
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
    assert max(jax.tree.leaves(moved)) > 0.0
