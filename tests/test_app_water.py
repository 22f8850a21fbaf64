"""The water app on a small box: complete output, exact resume after a kill, clear errors."""

import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from app_runs import app_command, finished, killed

from mosaicmd.kernel import units
from mosaicmd.kernel.config import ConfigError, load_config
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.model_files import load_model

APP = Path(__file__).parents[1] / "apps" / "water"


def small_settings():
    """Two updates and a short validation of 343 beads."""
    settings = yaml.safe_load((APP / "config" / "quick.yaml").read_text())
    settings["n_beads"] = 343
    short = {"equilibration_ps": 1.0, "production_ps": 4.0}
    settings["training"] |= short | {"frame_ps": 0.05, "n_updates": 2, "average_last": 1}
    settings["validation"] |= short | {"production_ps": 8.0}
    return settings


def small_network():
    """The published settings with two updates from four frames each."""
    settings = yaml.safe_load((APP / "config" / "published.yaml").read_text())
    settings["n_beads"] = 343
    short = {"equilibration_ps": 0.1, "production_ps": 0.4}
    settings["training"] |= short | {"n_updates": 2, "chunk_frames": 2}
    settings["validation"] |= short | {"production_ps": 3.2}
    return settings


def command(folder, settings=None, task="run"):
    return app_command(APP, folder, settings or small_settings(), task)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = finished(command(folder))
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_output_is_complete(undisturbed):
    metrics = json.loads((undisturbed / "results.json").read_text())["metrics"]
    for name in (
        "rdf_mse",
        "rdf_mse_initial",
        "adf_mse",
        "adf_mse_initial",
        "pressure_bar",
        "tetrahedral_order",
        "diffusion",
    ):
        assert set(metrics[name]) == {"value", "error", "unit", "reference", "source"}
        assert metrics[name]["error"] > 0.0
    report = (undisturbed / "report.html").read_text()
    assert report.count("<svg") == 4
    assert "src=" not in report
    assert {path.name for path in (undisturbed / "model").iterdir()} == {
        "model.json",
        "weights.safetensors",
    }


def test_learning_lowers_the_pressure_of_the_repulsive_start(undisturbed):
    """Two steps take several kbar of the 18 kbar away; error bars are a tenth of a kbar."""
    metrics = json.loads((undisturbed / "results.json").read_text())["metrics"]
    before, after = metrics["pressure_bar_initial"], metrics["pressure_bar"]
    assert before["value"] > 10_000.0
    assert before["value"] - after["value"] > 1_000.0 + 4.0 * (before["error"] + after["error"])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(undisturbed, tmp_path):
    arguments = command(tmp_path)
    killed(arguments, tmp_path / "out" / "training" / "checkpoints", "step-*.safetensors")
    assert not (tmp_path / "out" / "results.json").exists()
    assert finished(arguments).returncode == 0
    for name in ("results.json", "report.html", "model/weights.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_bead": 900}, "did you mean `n_beads`?"),
        ({"density": "300 K"}, "density"),
        ({"temperature_kelvin": "25 ps"}, "temperature_kelvin"),
    ],
)
def test_bad_settings_are_named(change, message, tmp_path):
    done = finished(command(tmp_path, small_settings() | change))
    assert done.returncode != 0
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_an_output_folder_of_other_settings_is_refused(undisturbed, tmp_path):
    config = tmp_path / "other.yaml"
    config.write_text(yaml.safe_dump(small_settings() | {"seed": 7}))
    app = [sys.executable, str(APP / "app.py"), "run"]
    done = finished([*app, "--config", str(config), "--out", str(undisturbed)])
    assert done.returncode != 0
    assert "other settings" in done.stderr


@pytest.fixture
def water(monkeypatch):
    monkeypatch.syspath_prepend(str(APP))
    return importlib.import_module("water")


def test_one_preset_is_as_published(water):
    """Thaler & Zavadlav (2021): the prior, 7000 steps per update, and Adam with its decay."""
    settings = load_config(water.WaterConfig, APP / "config" / "published.yaml")
    run = settings.training
    assert (run.every, run.steps(run.equilibration_ps), run.steps(run.production_ps)) == (
        10,
        1000,
        6000,
    )
    assert 0.003 * run.decay ** (200 / run.n_updates) == pytest.approx(3e-5)
    potential = water.build_potential(settings.model)
    assert potential.cutoff == 5.0
    kinds = [term["architecture"] for term in potential.config["terms"]]
    assert kinds == ["soft_repulsion", "scaled"]
    params = potential.init(jax.random.key(0))
    assert params[1]["embedding"]["species"].shape == (1, 16)
    assert params[1]["blocks"][3]["source"]["weight"].shape == (32, 32)
    r = np.array([2.5, 3.165])
    silent = jax.tree.map(jnp.zeros_like, params)
    pair = water.pair_energy(settings.model, silent, r)
    np.testing.assert_allclose(pair / units.KJ_PER_MOL, (3.165 / r) ** 12, rtol=1e-9)
    rdf, adf, pressure = water.targets(settings, potential)
    weight = (pressure.tolerance / (units.KJ_PER_MOL / units.NANOMETER**3)) ** -2
    assert weight == pytest.approx(1e-7, rel=1e-4)
    assert (rdf.tolerance, adf.tolerance, pressure.clip) == (1.0, 1.0, None)
    water.update_rule(run).init(params)
    assert water.smoothness(settings) is None


def test_the_full_preset_learns_the_published_network_from_another_start(water):
    full, published = (
        load_config(water.WaterConfig, APP / "config" / f"{name}.yaml")
        for name in ("full", "published")
    )
    assert full.model == published.model
    assert full.matching is not None
    assert published.matching is None
    run = full.training
    assert run.replicas * run.steps(run.production_ps) == 6000


def test_the_network_that_full_learned_is_the_one_of_its_results(water):
    """A number of the results, computed again from the model beside them."""
    results = json.loads((APP / "results" / "full.json").read_text())
    settings = load_config(water.WaterConfig, APP / "config" / "full.yaml")
    assert results["settings"] == settings.model_dump(mode="json")
    potential, params = load_model(APP / "results" / "full-model")
    assert potential.config == water.build_potential(settings.model).config
    r = np.linspace(2.0, 2.4, 41)
    force = -np.diff(water.pair_energy(settings.model, params, r)) / np.diff(r)
    wanted = results["metrics"]["pair_force_min_below_2p4_A"]["value"]
    assert force.min() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_a_network_takes_over_the_forces_of_another_model(water, tmp_path):
    """From frames at two temperatures, as far as a network this small and short can."""
    matching = importlib.import_module("matching")
    settings = yaml.safe_load((APP / "config" / "full.yaml").read_text()) | {"n_beads": 125}
    small = {"n_features": 8, "species_features": 4, "n_blocks": 1, "n_spherical": 3}
    settings["model"]["network"] |= small
    settings["matching"] |= {"temperatures_kelvin": ["300 K", "500 K"], "learning_rate": 0.01}
    settings["matching"] |= {"n_steps": 150, "equilibration_ps": 0.5, "production_ps": 4.0}
    settings["matching"] |= {"n_beads": 125, "frame_ps": 0.5}
    settings = load_config(water.WaterConfig, settings)
    classical = load_config(water.WaterConfig, APP / "config" / "quick.yaml")
    teacher = water.build_potential(classical.model)
    potential = water.build_potential(settings.model)
    key = jax.random.key(0)
    arguments = (settings, potential, potential.init(key), (teacher, teacher.init(key)), tmp_path)
    learned = matching.match(*arguments)
    metrics = read_metrics(tmp_path / "training" / "metrics.jsonl")
    errors = [line["rmse_forces_mev_per_angstrom"] for line in metrics]
    assert np.mean(errors[-10:]) < 0.75 * errors[0]
    again = matching.match(*arguments)
    jax.tree.map(np.testing.assert_array_equal, learned, again)


def test_a_model_is_a_spline_or_a_network(water):
    both = small_settings()["model"] | {"network": small_network()["model"]["network"]}
    with pytest.raises(ConfigError, match="needs `spline` and `three_body`, or `network`"):
        load_config(water.ModelConfig, both)
    with pytest.raises(ConfigError, match="needs `spline` and `three_body`, or `network`"):
        load_config(water.ModelConfig, {"prior": both["prior"], "spline": both["spline"]})


@pytest.mark.slow
def test_a_network_learns_and_is_resumed(tmp_path):
    """Killed within its first simulation, it goes on from there; two updates move every weight."""
    arguments = command(tmp_path, small_network(), "train")
    sampling = tmp_path / "out" / "training" / "sampling"
    errors = killed(arguments, sampling, "*/production/frames/*")
    assert "learning on cpu: 2 updates of about" in errors
    kept = min(sampling.glob("*/production/frames/*"))
    written = kept.stat().st_mtime_ns
    assert finished(arguments).returncode == 0
    assert not kept.exists() or kept.stat().st_mtime_ns == written
    metrics = read_metrics(tmp_path / "out" / "training" / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2]
    assert all(0.0 < line["loss"] < 1.0 for line in metrics)
    potential, learned = load_model(tmp_path / "out" / "model")
    for before, after in zip(
        jax.tree.leaves(potential.init(jax.random.key(2024))), jax.tree.leaves(learned), strict=True
    ):
        change = np.abs(np.asarray(after) - np.asarray(before))
        assert 0.0 < change.max() < 0.01
