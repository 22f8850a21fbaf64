"""The charge-transfer app on few structures and steps; its figures of merit on known answers."""

import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.io
import jax
import numpy as np
import pytest
import yaml
from app_runs import app_command, finished, killed
from ase.calculators.singlepoint import SinglePointCalculator

from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.model_files import load_model
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.systems import from_ase
from mosaicmd.kernel.units import COULOMB_CONSTANT
from mosaicmd.qeq_longrange import (
    ChargeEquilibrationConfig,
    CoulombConfig,
    DirectPlan,
    charge_equilibration,
    coulomb,
)

APP = Path(__file__).parents[1] / "apps" / "charge-transfer"
TINY = {"cutoff": "4 A", "n_scalars": 4, "n_tensors": 1, "l_max": 0, "n_layers": 2}
TINY |= {"two_body_widths": [4], "latent_widths": [4], "readout_widths": [4]}
FUNCTIONS = {"n_radial": 3, "zetas": [], "first_center": "1.5 A"}
APP_MODULES = ("app", "dynamics", "evaluation", "settings", "trainings")
FEW = {"steps": 6, "batch_size": 4, "charge_steps": 6}
TEACHER = charge_equilibration(
    ChargeEquilibrationConfig(
        plan=DirectPlan(),
        species=(11, 17),
        electronegativity=(3.0, 8.0),
        hardness=(4.0, 5.0),
        widths=(1.0, 1.0),
    )
).potential


def rows(distances, rng=None):
    """Na-Cl rows of charges 0 and 1, the latter with a further Na far from the first atom."""
    params, frames = TEACHER.init(jax.random.key(0)), []
    charges_of: Any = TEACHER.charges
    nothing: Any = None  # the sum runs over all pairs, whatever the graph
    label = jax.jit(
        lambda s: (
            evaluate(TEACHER.energy, params, s, nothing),
            charges_of(params, s, nothing),
        )
    )
    for net in (0, 1):
        for distance in distances:
            x = np.concatenate([[-distance], 2.5 * np.arange(3.0 + net)])
            places = np.stack([x, 0.0 * x, 0.0 * x], axis=1)
            if rng is not None:
                places = places + rng.normal(0.0, 0.05, places.shape)
            atoms = ase.Atoms("NaClNaCl" + "Na" * net, places)
            atoms.info |= {"total_charge": float(net), "distance": float(distance)}
            found, charges = label(from_ase(atoms))
            labels = {"energy": float(found.energy), "forces": np.asarray(found.forces)}
            atoms.calc = SinglePointCalculator(atoms, charges=np.asarray(charges), **labels)
            frames.append(atoms)
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    return text.getvalue()


def settings(folder, models, **change):
    """Rows of salt to learn from, and two curves."""
    rng = np.random.default_rng(0)
    (folder / "rows.extxyz").write_text(rows(rng.uniform(2.2, 3.4, 10), rng))
    (folder / "curves.extxyz").write_text(rows(np.linspace(2.2, 3.4, 7)))
    one = {"file": "rows.extxyz", "curves": "curves.extxyz", "species": [11, 17]}
    one |= {"network": TINY, "symmetry_functions": FUNCTIONS, "validation": 0.25}
    one |= {"electronegativity": [3.0, 8.0], "published": "Na8/9Cl8+"}
    one |= {"models": dict.fromkeys(models, FEW)}
    return {"seed": 1, "headline": ["salt"], "sets": {"salt": one}, **change}


@pytest.fixture
def app_modules(monkeypatch):
    """The app, gone again afterwards: other apps have modules of the same names."""
    monkeypatch.syspath_prepend(str(APP))
    before = set(sys.modules)
    yield {name: importlib.import_module(name) for name in APP_MODULES}
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(APP)):
            del sys.modules[name]


def test_a_local_model_is_judged_and_sets_without_data_are_skipped(
    app_modules, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("MOSAICMD_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    config = settings(tmp_path, ["local"])
    chain = {"file": "longrange/carbon_chain_4g.extxyz.gz", "curves": None, "species": [1, 6]}
    config["sets"]["published"] = config["sets"]["salt"] | chain
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    app_modules["app"].run(config=tmp_path / "small.yaml", out=tmp_path / "out")
    said = capsys.readouterr().out
    assert "published is skipped: data set longrange/carbon_chain_4g.extxyz.gz" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "is not on this machine" in results["skipped"]["published"]
    metrics = results["metrics"]
    assert metrics["energy_rmse_local"]["value"] == metrics["energy_rmse_local_salt"]["value"]
    assert metrics["energy_rmse_local_salt"]["error"] > 0.0
    assert metrics["energy_rmse_local_salt"]["reference"] == 1.692
    # the far atom is out of reach of the further one: what is local cannot know of the charge
    assert abs(metrics["removal_slope_local_salt"]["value"]) < 1e-6
    assert abs(metrics["removal_slope_reference_salt"]["value"]) > 0.05
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("<svg") == 4
    assert "published: skipped" in report
    assert "src=" not in report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"headline": ["gold"]}, "`headline` ['gold'] are not among"),
        ({"cost": {"set": "salt", "repeats": [2]}}, "needs the models ['celli', 'mace']"),
        ({"sets": {}}, "sets"),
    ],
)
def test_bad_settings_are_named(change, message, app_modules, tmp_path):
    config = settings(tmp_path, ["local"], **change)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    kernel = importlib.import_module("mosaicmd.kernel.config")
    with pytest.raises(kernel.ConfigError, match=message.replace("[", r"\[").replace("]", r"\]")):
        kernel.load_config(app_modules["settings"].ChargeTransferConfig, tmp_path / "bad.yaml")


def test_charges_of_a_crystal_feel_all_their_images(app_modules):
    """Madelung's constant of rock salt, 1.747564594633: from a plan for one set, by the app."""
    crystal = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    charges = np.where(crystal.numbers == 11, 1.0, -1.0)
    system = from_ase(crystal)._replace(charges=jax.numpy.asarray(charges))
    labels = importlib.import_module("mosaicmd.kernel.data").Labels(charges=charges)
    change = {"network": TINY, "widths": [0.3, 0.4], "coulomb_accuracy": 1e-6}
    one = {"file": "any", "species": [11, 17], "models": {"celli": FEW}, **change}
    chosen = app_modules["settings"].SetConfig(**one)
    plan = app_modules["trainings"].coulomb(chosen, [(system, labels)] * 2)
    assert plan.method in ("ewald", "pme")
    model, graph = coulomb(CoulombConfig(plan=plan)), host_graph(system, plan.cutoff)
    found = float(model.energy({}, system, graph).sum())
    np.testing.assert_allclose(found, -4 * 1.747564594633 * COULOMB_CONSTANT / 2.82, rtol=1e-6)
    cluster = from_ase(ase.Atoms("NaCl", [[0.0, 0.0, 0.0], [0.0, 0.0, 2.5]]))
    alone = labels._replace(charges=charges[:2])
    assert app_modules["trainings"].coulomb(chosen, [(cluster, alone)]) == DirectPlan()
    kernel = importlib.import_module("mosaicmd.kernel.config")
    larger = system._replace(cell=1.1 * system.cell)
    for other in ((cluster, alone), (larger, labels)):
        with pytest.raises(kernel.ConfigError, match="structure 1 of any has the cell"):
            app_modules["trainings"].coulomb(chosen, [(system, labels), other])


def test_errors_of_sets_together_are_those_of_all_their_structures(app_modules):
    """Means of 4 and 16 over three and one structures: a root of 7; no error without spread."""
    rmse = app_modules["evaluation"].rmse
    assert rmse(np.full((1, 3), 4.0), np.full((1, 1), 16.0)) == pytest.approx((7.0**0.5, 0.0))
    spread = np.random.default_rng(1).chisquare(1, size=(1, 400))
    value, error = rmse(spread)
    assert value == pytest.approx(1.0, abs=4 * error)
    # the variance of a mean of n squares of normal numbers is 2 / n, that of its root half of that
    assert error == pytest.approx((0.5 / 400) ** 0.5, rel=0.3)
    mean, error = rmse(np.array([[1.0, 1.0], [9.0, 9.0]]))
    assert (mean, error) == pytest.approx((2.0, 1.0))  # two seeds, 1 and 3


def test_curves_know_slopes_and_minima(app_modules):
    """Parabolas with minima at 2.6 and 2.8 Å whose difference is a line of slope -0.4 eV/Å."""
    module = app_modules["evaluation"]
    x = np.linspace(2.2, 3.4, 13)
    truth = np.array([(x - 2.6) ** 2, (x - 2.8) ** 2])
    blind = np.array([(x - 2.7) ** 2, (x - 2.7) ** 2 + 5.0])
    found = module.Curves(x, (0.0, 1.0), {"reference": truth, "local": blind})
    assert module.removal_slope(found, "reference") == pytest.approx(-0.4)
    assert module.removal_slope(found, "local") == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(module.minima(found, "reference"), [2.6, 2.8], atol=1e-3)
    slopes = np.array([-0.2, 0.2])[:, None] * (x - x.mean())
    np.testing.assert_allclose(module.curve_deviations(found, "local"), 1e3 * slopes, atol=1e-9)


def test_a_share_of_every_group_is_held_out(app_modules, tmp_path):
    module, (settings_module) = app_modules["trainings"], app_modules["settings"]
    (tmp_path / "rows.extxyz").write_text(rows(np.linspace(2.2, 3.4, 10)))
    one = settings_module.SetConfig(
        file="rows.extxyz", species=(11, 17), network=TINY, models={"local": FEW}, test=0.3
    )
    parts = module.divide(one, tmp_path / "rows.extxyz", tmp_path / "data", "salt", 1)
    parted: list[Any] = [ase.io.read(path, ":") for path in parts]
    train, test = parted
    for frames, n in ((train, 7), (test, 3)):
        assert sorted(map(len, module.groups(frames).values())) == [n, n]
    places = {tuple(atoms.positions.ravel()) for atoms in (*train, *test)}
    assert len(places) == 20
    assert all(abs(a.get_charges().sum() - a.info["total_charge"]) < 1e-6 for a in test)


def test_copies_of_a_molecule_stand_side_by_side(app_modules):
    """Neutral rows of four atoms 2.5 Å apart, 7.5 Å long."""
    frames = ase.io.read(io.StringIO(rows([2.5, 2.5])), ":", format="extxyz")
    settings = app_modules["settings"].CostConfig(set="salt", repeats=(3,), gap="3 A")
    atoms = app_modules["dynamics"].crystal(settings, frames[::-1], 3)
    np.testing.assert_allclose(sorted(atoms.cell.lengths()), [9.0, 9.0, 31.5], atol=1e-6)
    assert len(atoms) == 4 * 27
    assert abs(atoms.get_initial_charges().sum()) < 1e-6
    assert np.ptp(atoms.get_initial_charges()) > 0.1
    nearest = atoms.get_all_distances(mic=True) + 9.0 * np.eye(len(atoms))
    assert 2.2 < nearest.min() < 2.8
    salt = settings.model_copy(update={"lattice_constant": 5.64})
    assert app_modules["dynamics"].crystal(salt, [], 2).cell[0, 0] == pytest.approx(11.28)


def complete(folder):
    """All models, dynamics and cost, of the shortest kind."""
    config = settings(folder, ["local", "celli", "fourth", "mace"])
    config["sets"]["salt"]["mace"] = {"n_channels": 4, "hidden_l_max": 0, "l_max": 1}
    config["sets"]["salt"]["mace"] |= {"correlation": 1, "radial_widths": [4]}
    config["dynamics"] = {"sets": ["salt"], "temperature_kelvin": 50, "timestep_fs": 0.5}
    config["dynamics"] |= {"duration_ps": 0.02, "every": 4}
    config["cost"] = {"set": "salt", "repeats": [2], "steps": 2, "accuracy": 0.1}
    config["cost"] |= {"lattice_constant": "5.64 A"}
    return app_command(APP, folder, config)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = finished(complete(folder))
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.slow
def test_all_models_are_compared(undisturbed):
    metrics = json.loads((undisturbed / "results.json").read_text())["metrics"]
    for model in ("local", "celli", "fourth", "mace"):
        assert set(metrics[f"energy_rmse_{model}"]) == {
            "value",
            "error",
            "unit",
            "reference",
            "source",
        }
        assert f"curve_rmse_{model}_salt" in metrics
        assert (f"charges_rmse_{model}_salt" in metrics) == (model in ("celli", "fourth"))
    ratio = metrics["energy_rmse_celli"]["value"] / metrics["energy_rmse_local"]["value"]
    assert metrics["energy_rmse_ratio"]["value"] == pytest.approx(ratio)
    assert abs(metrics["energy_drift_salt"]["value"]) < 1.0
    assert metrics["milliseconds_per_step_celli_64_atoms"]["value"] > 0.0
    assert (undisturbed / "report.html").read_text().count("<svg") == 6
    potential, _ = load_model(undisturbed / "models" / "salt-celli-0" / "model")
    assert potential.charges is not None


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers(undisturbed, tmp_path):
    command = complete(tmp_path)
    killed(command, tmp_path, "out/models/salt-celli-0/energy/checkpoints/*")
    done = finished(command)
    assert done.returncode == 0, done.stderr
    first, second = (
        json.loads((folder / "results.json").read_text())["metrics"]
        for folder in (undisturbed, tmp_path / "out")
    )
    timed = ("milliseconds_per_step", "times_faster")
    for name in first:
        if not name.startswith(timed):
            assert first[name]["value"] == pytest.approx(second[name]["value"], rel=1e-4), name
