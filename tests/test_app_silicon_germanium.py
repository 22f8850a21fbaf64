"""The silicon-germanium app on small data: synthetic elements, and two others by settings alone."""

import io
import json
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
import yaml
from app_runs import app_command, finished
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from mosaicmd.kernel.model_files import load_model
from mosaicmd.kernel.pytrees import named_leaves

APP = Path(__file__).parents[1] / "apps" / "silicon-germanium"
FEW = {"source_steps": 40, "steps": 20, "source_rate": 0.01, "rates": [0.01, 0.02]}
FEW |= {"shares": [0.5, 1.0], "seeds": 2}
MODEL = {
    "architecture": "painn",
    "cutoff": "3.6 A",
    "config": {"n_features": 8, "n_layers": 1, "n_radial": 4},
}


def quick():
    return yaml.safe_load((APP / "config" / "quick.yaml").read_text())


def run(folder, settings, **environment):
    return finished([*app_command(APP, folder, settings), "--workers", "1"], **environment)


def metal(folder, symbol, a):
    """Rattled, strained fcc with labels of the effective medium potential of ASE."""
    for part, n, seed in (("train", 8, 0), ("test", 4, 100)):
        frames = []
        for k in range(n):
            atoms = ase.build.bulk(symbol, "fcc", a=a * (1.0 + 0.004 * (k % 4)), cubic=True)
            atoms = atoms.repeat((2, 1, 1))
            atoms.rattle(0.08, seed=seed + k)
            atoms.calc = EMT()
            labels = {
                "energy": atoms.get_potential_energy(),
                "forces": atoms.get_forces(),
                "stress": atoms.get_stress(),
            }
            atoms.calc = SinglePointCalculator(atoms, **labels)
            frames.append(atoms)
        text = io.StringIO()
        ase.io.write(text, frames, format="extxyz")
        (folder / f"{symbol}_{part}.extxyz").write_text(text.getvalue())
    return {part: f"{symbol}_{part}.extxyz" for part in ("train", "test")}


@pytest.fixture(scope="module")
def copper_to_nickel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metals")
    settings = {
        "seed": 1,
        "model": MODEL,
        "strategies": {
            "freeze": {"scales": "tables", "rates": {"embedding": 0.0}, "pull": 0.1},
        },
        "pairs": {
            "metals": {
                "source": metal(folder, "Cu", 3.61),
                "target": metal(folder, "Ni", 3.52),
                "cohesive_energies": [3.49, 4.44],
                "training": FEW,
            }
        },
    }
    done = run(folder, settings)
    assert done.returncode == 0, done.stderr
    return folder, settings


def test_another_pair_needs_settings_alone(copper_to_nickel):
    folder, _ = copper_to_nickel
    results = json.loads((folder / "out" / "results.json").read_text())
    for name in ("ratio", "scratch", "freeze"):
        for percent in (50, 100):
            metric = results["metrics"][f"metals_force_rmse_{name}_{percent}pct"]
            assert metric["value"] > 0.0
            assert metric["error"] > 0.0
    report = (folder / "out" / "report.html").read_text()
    assert report.count("<svg") == 2
    assert "src=" not in report


def test_model_files_say_how_they_were_made(copper_to_nickel):
    """Ratios of ASE's lattice constants and of the cohesive energies given; frozen and pulled."""
    folder, _ = copper_to_nickel
    models = folder / "out" / "metals" / "models"
    assert len(list(models.iterdir())) >= 1 + 2 * 2 * 2
    (path, *_) = models.glob("freeze-4-0-*")
    potential, weights = load_model(path)
    assert potential.config["length"] == pytest.approx(3.52 / 3.61, rel=1e-3)
    assert potential.config["energy"] == pytest.approx(4.44 / 3.49)
    assert potential.species == (28,)
    training = json.loads((path / "model.json").read_text())["training"]
    assert training["transfer"]["rates"] == {"embedding": 0.0}
    assert training["transfer"]["pull"] == 0.1
    assert training["trial"]["size"] == 4
    _, source = load_model(models / "source")
    np.testing.assert_allclose(
        weights["embedding"], source["embedding"], rtol=1e-5, atol=1e-6
    )  # averaged
    assert not np.array_equal(
        weights["readout"]["hidden"]["weight"], source["readout"]["hidden"]["weight"]
    )


def test_the_same_command_again_computes_nothing_anew(copper_to_nickel):
    folder, settings = copper_to_nickel
    results = (folder / "out" / "results.json").read_bytes()
    cached = {p: p.stat().st_mtime_ns for p in (folder / "out" / "metals" / "cache").iterdir()}
    done = run(folder, settings)
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "results.json").read_bytes() == results
    assert {p: p.stat().st_mtime_ns for p in cached} == cached


@pytest.mark.slow
def test_a_dask_cluster_finds_the_same(copper_to_nickel, monkeypatch):
    """Two workers share the trainings: the numbers of one local process, to single precision."""
    distributed = pytest.importorskip("distributed")
    folder, settings = copper_to_nickel
    monkeypatch.syspath_prepend(str(APP))  # workers import the modules of the app
    there = folder / "cluster"
    there.mkdir()
    for path in folder.glob("*.extxyz"):
        (there / path.name).write_bytes(path.read_bytes())
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as local:
        address = ["--cluster", local.scheduler_address]
        done = finished([*app_command(APP, there, settings), *address])
    assert done.returncode == 0, done.stderr
    mine, theirs = (
        json.loads((place / "out" / "results.json").read_text())["metrics"]
        for place in (there, folder)
    )
    assert set(mine) == set(theirs)
    for name, metric in mine.items():
        assert metric["value"] == pytest.approx(theirs[name]["value"], rel=1e-4), name
    refused = finished([*app_command(APP, there, settings), *address, "--workers", "1"])
    assert "a cluster has its own" in " ".join(refused.stderr.replace("│", " ").split())


def test_without_the_data_it_says_what_it_skipped(tmp_path):
    settings = quick()
    del settings["pairs"]["synthetic"]
    done = run(tmp_path, settings, MOSAICMD_DATA="", XDG_CACHE_HOME=str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    assert "real is skipped: data set si_train.extxyz.gz" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "is not on this machine" in results["skipped"]["real"]
    assert "real: skipped" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategies": {"scratch": {}}}, "must not name 'scratch'"),
        ({"pairs": {"real": {"source": {"train": "si.xyz"}}}}, "pairs.real"),
        ({"seeds": 3}, "seeds: unknown key"),
    ],
)
def test_bad_settings_are_named(change, message, tmp_path):
    done = run(tmp_path, quick() | change)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_an_error_and_nothing_to_skip(tmp_path):
    settings = quick()
    settings["pairs"] = {"real": settings["pairs"]["real"]}
    settings["pairs"]["real"]["source"]["train"] = "si_train.extxyz"
    done = run(tmp_path, settings)
    assert done.returncode != 0
    assert "'si_train.extxyz' is no file" in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.slow
def test_every_strategy_of_the_full_preset_does_what_it_says(tmp_path):
    """On copper and nickel, a MACE of two channels and four steps: what moved, and what did not."""
    settings = yaml.safe_load((APP / "config" / "full.yaml").read_text())
    network = {"n_channels": 2, "n_layers": 2, "hidden_l_max": 0, "l_max": 1, "correlation": 2}
    settings["model"] = {"architecture": "mace", "cutoff": "3.2 A", "config": network}
    settings["pairs"] = {
        "metals": {
            "source": metal(tmp_path, "Cu", 3.61),
            "target": metal(tmp_path, "Ni", 3.52),
            "cohesive_energies": [3.49, 4.44],
            "training": FEW | {"source_steps": 200, "steps": 4, "rates": [0.01], "shares": [1.0]},
        }
    }
    settings["pairs"]["metals"]["training"]["seeds"] = 1
    done = run(tmp_path, settings)
    assert done.returncode == 0, done.stderr
    models = tmp_path / "out" / "metals" / "models"
    _, source = load_model(models / "source")
    found = {}
    for name in settings["strategies"]:
        (path,) = models.glob(f"{name}-8-0-*")
        training = json.loads((path / "model.json").read_text())["training"]
        found[name] = (*load_model(path), training["transfer"])
    old = dict(named_leaves(source))
    changes = {
        name: {leaf: np.asarray(new - old[leaf]) for leaf, new in named_leaves(weights)}
        for name, (_, weights, _) in found.items()
    }
    moved = {
        name: {leaf for leaf, change in change_of.items() if np.abs(change).max() > 1e-5}
        for name, change_of in changes.items()
    }
    tables = (pytest.approx(3.52 / 3.61, rel=1e-3), pytest.approx(4.44 / 3.49))
    for name, (potential, _, record) in found.items():
        scales = (potential.config["length"], potential.config["energy"])
        if name == "copy":
            assert scales == (1.0, 1.0)
        elif name == "fit":
            assert scales[0] == record["scales"]["length"] != tables[0]
        else:
            assert scales == tables
        assert moved[name]
    blocks = {name: {leaf.split("/")[0] for leaf in leaves} for name, leaves in moved.items()}
    assert "embedding" in blocks["copy"]
    assert "embedding" not in blocks["freeze"]
    assert blocks["adapters"] == {"layers"}

    def distance(name, part):
        rows = [np.ravel(change) for leaf, change in changes[name].items() if part in leaf]
        return np.linalg.norm(np.concatenate(rows))

    assert distance("new_readout", "readout") > 3.0 * distance("rescale", "readout")
    assert distance("freeze", "layers/0/") < 0.5 * distance("rescale", "layers/0/")
    assert found["pull"][2]["pull"] == 1e-3
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert {f"metals_force_rmse_ratio_{name}_100pct" for name in found if name != "rescale"} < set(
        metrics
    )


@pytest.mark.slow
def test_a_synthetic_pair_has_a_truth_for_every_property(tmp_path):
    settings = quick()
    settings["model"] = MODEL | {"cutoff": "4.0 A"}
    settings["strategies"] = {"rescale": {"scales": "tables"}}
    pair = settings["pairs"]["synthetic"]
    pair["dynamics"] = {"temperatures_kelvin": [300, 4000], "n_equilibration": 5, "n_cells": 2}
    pair["dynamics"] |= {"n_train": 4, "n_test": 2}
    pair["training"] = FEW | {"only_groups": ["300 K"]}
    pair["hot"] |= {"duration_ps": 0.5, "models": 3, "replicas": 2, "group": "4000 K"}
    del pair["model"]
    settings["pairs"] = {"synthetic": pair}
    done = run(tmp_path, settings)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    truth = results["pairs"]["synthetic"]["truth"]
    assert truth["lattice_constant"] == pytest.approx(5.654, abs=0.01)
    assert results["metrics"]["synthetic_stable_ps_truth"]["value"] == 0.5
    stable = results["pairs"]["synthetic"]["stable_ps"]
    assert {name: np.shape(times) for name, times in stable.items()} == dict.fromkeys(
        ("scratch", "rescale", "truth"), (3, 2)
    )
    for name in ("c11", "c44", "optical_phonon", "vacancy_energy", "surface_energy"):
        assert truth[name] > 0.0
        assert set(results["pairs"]["synthetic"]["properties"]["rescale"][0]) == set(truth)
    assert "synthetic_force_rmse_ratio_other_temperature_4000K" in results["metrics"]
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 6
