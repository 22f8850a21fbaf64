"""The command line with a potential of two parameters."""

import subprocess
import sys
import types
from importlib.metadata import EntryPoint

import ase.build
import ase.io
import jax.numpy as jnp
import matching_data
import numpy as np
import pytest
import typer
import yaml
from cli_runs import SETTINGS, entry_points, results, write_data, write_settings
from typer.testing import CliRunner

from mosaicmd.kernel import potentials
from mosaicmd.kernel.batches import Batches
from mosaicmd.kernel.cli import commands
from mosaicmd.kernel.data import read_systems
from mosaicmd.kernel.deploy import ase_calculator, load_exported
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.force_matching import evaluate_labels
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.model_files import load_model, read_model_record, save_model
from mosaicmd.kernel.potentials import evaluate, sum_potentials
from mosaicmd.kernel.reference_energies import atomic_energies
from mosaicmd.kernel.systems import from_ase
from mosaicmd.kernel.trajectory_files import read_trajectory

REFERENCE = {1: -1.5, 8: -2.5}


@pytest.fixture(autouse=True)
def pair_is_installed(monkeypatch):
    monkeypatch.setattr(potentials, "entry_points", entry_points())


def run(*arguments, code=0):
    found = CliRunner().invoke(commands.build_app(), [str(one) for one in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == code, found.output
    return found.output


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished training run, beside its data and settings."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(potentials, "entry_points", entry_points())
        write_data(folder / "all.extxyz")
        output = run("train", write_settings(folder), "--out", folder / "run", "--quiet")
    assert "train        energy" in output
    return folder


def test_a_run_leaves_settings_metrics_model_errors_and_a_report(trained):
    folder = trained / "run"
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["data"]["train"][0]["path"] == str(trained / "all.extxyz")
    assert settings["loss"]["forces"] == {"weight": 1.0, "huber": 5.0}
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [*range(1, 13)]
    found = results(folder)
    assert found["n_structures"] == {"train": 6, "validation": 3, "test": 3}
    units = {"energy": "meV/atom", "forces": "meV/Å", "stress": "GPa"}
    for split in ("train", "validation", "test"):
        for label, unit in units.items():
            for error in ("mae", "rmse"):
                metric = found["metrics"][f"{split}_{error}_{label}"]
                assert metric["unit"] == unit
                assert metric["value"] > 0.0
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 4
    record = read_model_record(folder / "model")
    assert record["architecture"] == "sum"
    assert record["training"]["data"] == found["n_structures"]


def test_training_lowers_errors_that_are_those_of_evaluate_labels(trained):
    """An independent sum over batches gives the same numbers."""
    data = read_systems(trained / "all.extxyz")
    examples = make_examples(
        data, matching_data.CUTOFF, reference_energies=REFERENCE, dtype="float32"
    )
    (potential, params) = load_model(trained / "run" / "model")
    assert [term["architecture"] for term in potential.config["terms"]] == [
        "pair",
        "atomic_energies",
    ]
    errors = evaluate_labels(matching_data.energy, params[0], Batches(examples, 5))
    start = evaluate_labels(
        matching_data.energy, matching_data.params_of(matching_data.START), Batches(examples, 5)
    )
    assert errors["rmse_forces_mev_per_angstrom"] < 0.8 * start["rmse_forces_mev_per_angstrom"]
    out = trained / "evaluated"
    output = run("evaluate", trained / "run" / "model", trained / "all.extxyz", "--out", out)
    assert "forces" in output
    metrics = results(out)["metrics"]
    for ours, theirs in (
        ("all_rmse_energy", "rmse_energy_mev_per_atom"),
        ("all_mae_forces", "mae_forces_mev_per_angstrom"),
        ("all_rmse_stress", "rmse_stress_gpa"),
    ):
        assert metrics[ours]["value"] == pytest.approx(errors[theirs], rel=1e-4)


def test_data_without_labels_cannot_be_evaluated(trained, tmp_path):
    ase.io.write(tmp_path / "bare.extxyz", ase.build.bulk("O", "fcc", a=4.0, cubic=True))
    output = run("evaluate", trained / "run" / "model", tmp_path / "bare.extxyz", code=1)
    assert "no structure has any of the labels" in output


def test_the_model_gives_total_energies(trained):
    atoms = ase.io.read(trained / "all.extxyz", index=0)
    label = atoms.get_potential_energy()
    atoms.calc = ase_calculator(trained / "run" / "model")
    assert abs(atoms.get_potential_energy() - label) / len(atoms) < 0.2


def test_the_same_command_again_changes_nothing_and_a_lost_end_is_made_again(trained):
    folder = trained / "run"
    before = contents(folder)
    run("train", write_settings(trained), "--out", folder, "--quiet")
    assert contents(folder) == before
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    newest.unlink()  # as if killed before it was written
    (folder / "report.html").unlink()
    run("train", write_settings(trained), "--out", folder, "--quiet")
    assert contents(folder) == before


def test_a_folder_of_other_settings_or_data_is_refused(trained):
    other = write_settings(trained, steps=13)
    output = run("train", other, "--out", trained / "run", code=1)
    assert "a run with other settings (different: steps)" in " ".join(output.split())
    data = (trained / "all.extxyz").read_text()
    write_data(trained / "all.extxyz", n=11)
    output = run("train", write_settings(trained), "--out", trained / "run", code=1)
    assert "all.extxyz changed since the run" in " ".join(output.split())
    (trained / "all.extxyz").write_text(data)


def test_fine_tuning_keeps_reference_energies_and_what_is_frozen(trained, tmp_path):
    write_data(tmp_path / "all.extxyz")
    settings = {name: value for name, value in SETTINGS.items() if name != "potential"}
    settings |= {"init_from": str(trained / "run" / "model"), "freeze": ["sigma"], "steps": 3}
    del settings["reference_energies"]
    path = tmp_path / "tune.yaml"
    path.write_text(yaml.safe_dump(settings | {"patience": 2, "validate_every": 1}))
    run("train", path, "--out", tmp_path / "run", "--quiet")
    before = load_model(trained / "run" / "model")[1][0]
    potential, (after, _) = load_model(tmp_path / "run" / "model")
    assert potential.config["terms"][1]["config"]["energies"] == {"1": -1.5, "8": -2.5}
    assert float(after["sigma"]) == float(before["sigma"])
    assert float(after["epsilon"]) != float(before["epsilon"])
    assert results(tmp_path / "run")["reference_energies_ev"] == {"1": -1.5, "8": -2.5}


def test_dry_run_prints_settings_that_load_again_and_writes_nothing(tmp_path):
    write_data(tmp_path / "all.extxyz", n=2)
    output = run("train", write_settings(tmp_path), "--out", tmp_path / "run", "--dry-run")
    again = tmp_path / "again.yaml"
    again.write_text(output)
    assert run("train", again, "--dry-run") == output
    assert not (tmp_path / "run").exists()
    (tmp_path / "all.extxyz").unlink()
    assert "data files do not exist" in run("train", again, "--dry-run", code=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bath_size": 3}, "bath_size: unknown key (did you mean `batch_size`?)"),
        ({"potential": {"architecture": "pear"}}, "(did you mean `pair`?)"),
        ({"potential": {"architecture": "pair", "config": {"a": 1}}}, "has no settings, got"),
        ({"optimizer": {"name": "sdg"}}, "'sdg' is unknown (did you mean `sgd`?)"),
        ({"loss": {"energy": 1.0, "forces": 1.0}}, "labels ['stress'] without a weight"),
        ({"freeze": ["sigmo"]}, "matches no parameter (did you mean `sigma`?)"),
        ({"reference_energies": {"Xx": 1.0}}, "'Xx' is neither a label nor an element"),
    ],
)
def test_settings_that_cannot_be_used_are_named(tmp_path, changes, words):
    write_data(tmp_path / "all.extxyz")
    output = run("train", write_settings(tmp_path, **changes), "--out", tmp_path / "run", code=1)
    assert words in " ".join(output.split())


def test_stresses_of_the_wrong_sign_stop_the_training(tmp_path):
    write_data(tmp_path / "all.extxyz", sign=-1.0)
    output = run("train", write_settings(tmp_path), "--out", tmp_path / "run", code=1)
    assert "`stress` has the wrong sign" in " ".join(output.split())


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    """A model with a cold crystal."""
    folder = tmp_path_factory.mktemp("crystal")
    params = matching_data.params_of(matching_data.TRUE)
    potential = sum_potentials(matching_data.PAIR, atomic_energies({18: -3.0}))
    save_model(folder / "model", potential, (params, {}))
    atoms = ase.build.bulk("Ar", "fcc", a=3.55, cubic=True) * (2, 2, 2)
    ase.io.write(folder / "crystal.extxyz", atoms)
    return folder


MD = ("--temperature", "30 K", "--timestep", "2 fs", "--steps", "200", "--every", "10", "--quiet")


@pytest.mark.parametrize("ensemble", ["nve", "npt"])
def test_dynamics_writes_a_trajectory_and_averages_and_resumes(crystal, tmp_path, ensemble):
    out = tmp_path / "md"
    command = ("md", crystal / "model", crystal / "crystal.extxyz", "--out", out, *MD)
    output = run(*command, "--ensemble", ensemble)
    assert "drift_of_conserved_energy" in output
    trajectory = read_trajectory(out / "trajectory.traj")
    assert trajectory.n_frames == 20
    metrics = results(out)["metrics"]
    assert abs(metrics["drift_of_conserved_energy"]["value"]) < 2.0  # meV/atom/ps
    assert 0.0 < metrics["temperature_kelvin"]["error"] < 40.0
    assert 0.0 < metrics["potential_energy"]["error"] < 1e-2  # eV/atom
    assert ("volume" in metrics) == (ensemble == "npt")
    before = contents(out)
    newest = sorted((out / "run" / "checkpoints").iterdir())[-1]
    newest.unlink()
    run(*command, "--ensemble", ensemble)
    assert contents(out) == before
    output = run(*command, "--ensemble", ensemble, "--seed", "1", code=1)
    assert "different: seed" in " ".join(output.split())


def test_dynamics_takes_durations_and_repeats(crystal, tmp_path):
    settings = tmp_path / "md.yaml"
    settings.write_text("temperature_kelvin: 30 K\nthermostat: langevin\nfriction_per_ps: 2\n")
    arguments = ("--config", settings, "--duration", "0.1 ps", "--every", 7, "--repeat", "1,1,2")
    output = run("md", crystal / "model", crystal / "crystal.extxyz", *arguments, "--dry-run")
    resolved = yaml.safe_load(output)
    assert resolved["duration_ps"] == 0.1
    assert resolved["repeat"] == [1, 1, 2]
    out = tmp_path / "md"
    run("md", crystal / "model", crystal / "crystal.extxyz", *arguments, "--out", out, "--quiet")
    trajectory = read_trajectory(out / "trajectory.traj")
    assert trajectory.n_frames == 15  # 105 steps
    assert trajectory.systems.n_atoms == 64
    output = run("md", crystal / "model", crystal / "crystal.extxyz", "--steps", 10, code=1)
    assert "temperature_kelvin: is required" in output
    output = run(
        "md", crystal / "model", crystal / "crystal.extxyz", "--temperature", "3 bar", code=1
    )
    assert "'3 bar' is a pressure" in output


def test_charges_are_learned_evaluated_and_given_by_the_calculator(monkeypatch, tmp_path):
    """True are 0.01 e per neighbor; Adam starts with five steps of almost 0.002."""
    monkeypatch.setattr(potentials, "entry_points", entry_points())
    data = write_data(tmp_path / "all.extxyz", 1, per_neighbor=0.01)
    changes = {
        "data": {"train": "all.extxyz", "validation": 0.0},
        "potential": {"architecture": "charged"},
        "loss": {"energy": 0, "forces": 0, "stress": 0, "charges": 1.0},
        "optimizer": {"learning_rate": 0.002},
        "average_decay": 0.0,
        "steps": 5,
    }
    model, evaluated = tmp_path / "run" / "model", tmp_path / "evaluated"
    run("train", write_settings(tmp_path, **changes), "--out", tmp_path / "run", "--quiet")
    (_, params) = load_model(model)
    assert params[0]["per_neighbor"] == pytest.approx(0.01, abs=0.002)
    assert "charges" in run("evaluate", model, data, "--out", evaluated)
    assert "Parity of charges" in (evaluated / "report.html").read_text()
    error = results(evaluated)["metrics"]["all_mae_charges"]
    atoms = ase.io.read(data)
    labels = atoms.get_charges()
    atoms.calc = ase_calculator(model)
    assert error["unit"] == "me"
    assert error["value"] == pytest.approx(
        1e3 * np.mean(np.abs(atoms.get_charges() - labels)), rel=1e-4
    )
    assert error["value"] < 0.2 * 1e3 * np.mean(np.abs(labels))

    changes["potential"] = {"architecture": "pair"}
    output = run("train", write_settings(tmp_path, **changes), "--out", tmp_path / "no", code=1)
    assert "loss.charges: the potential 'pair' predicts no charges" in output


def test_export_writes_a_program_equal_to_the_model(crystal, tmp_path):
    path = tmp_path / "crystal.mosaicmd"
    run("export", crystal / "model", "--out", path, "--dtype", "float64")
    potential, params = load_model(crystal / "model")
    atoms = ase.io.read(crystal / "crystal.extxyz")
    atoms.rattle(0.1, seed=0)
    system = from_ase(atoms, dtype=jnp.float64)
    graph = host_graph(system, potential.cutoff)
    wanted = evaluate(potential.energy, params, system, graph)
    outputs = load_exported(path).evaluate(system, graph)
    np.testing.assert_allclose(jnp.sum(outputs.energies), wanted.energy, rtol=1e-12)
    np.testing.assert_allclose(outputs.forces, wanted.forces, atol=1e-11)


def test_schemas_name_every_setting():
    schema = yaml.safe_load(run("schema"))
    assert set(SETTINGS) < set(schema["properties"])
    assert "temperature_kelvin" in yaml.safe_load(run("schema", "md"))["properties"]
    assert "not of 'x'" in run("schema", "x", code=1)


def test_members_add_commands_and_broken_ones_are_named(monkeypatch):
    module = types.ModuleType("a_member")
    module.app = typer.Typer()

    @module.app.command()
    def greet(name: str, loud: bool = False):
        """Say hello."""
        typer.echo(f"hello {name}{'!' * loud}")

    def plain(number: int = 2):
        """Double it."""
        typer.echo(2 * number)

    module.plain = plain
    monkeypatch.setitem(sys.modules, "a_member", module)
    group = "mosaicmd.commands"
    installed = entry_points(
        EntryPoint("greet", "a_member:app", group),
        EntryPoint("double", "a_member:plain", group),
        EntryPoint("broken", "no_such_module:app", group),
        EntryPoint("md", "a_member:app", group),
    )
    monkeypatch.setattr(commands, "entry_points", installed)
    with pytest.warns(UserWarning, match="'md' of a_member:app is left out"):
        assert "greet" in run("--help")
    with pytest.warns(UserWarning, match="left out"):
        assert run("greet", "you", "--loud") == "hello you!\n"
    with pytest.warns(UserWarning, match="left out"):
        assert run("double", "--number", "4") == "8\n"
    with pytest.warns(UserWarning, match="left out"):
        assert "Say hello" in run("greet", "--help")
    with pytest.warns(UserWarning, match="left out"):
        output = run("broken", code=1)
    assert "'broken' of no_such_module:app cannot be loaded" in " ".join(output.split())


def test_help_imports_nothing_heavy():
    """`mosaicmd --help` starts in the time that Python and typer take."""
    script = (
        "import sys\n"
        "from mosaicmd.kernel.cli import main\n"
        "sys.argv = ['mosaicmd', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'jax', 'numpy', 'ase', 'optax', 'pydantic', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("train", "evaluate", "md", "export", "schema"):
        assert name in done.stdout
