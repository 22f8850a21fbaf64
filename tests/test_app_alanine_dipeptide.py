"""The alanine dipeptide app: its reference, its priors, its measures, and a small run."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import ase
import ase.geometry
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from app_runs import app_command, finished, killed
from scipy.spatial.transform import Rotation

from mosaicmd.difftre import aggregate_forces
from mosaicmd.kernel import units
from mosaicmd.kernel.config import load_config
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.observables.internal_coordinates import dihedral
from mosaicmd.kernel.potentials import build_potential, evaluate
from mosaicmd.kernel.systems import make_system

APP = Path(__file__).parents[1] / "apps" / "alanine-dipeptide"


def small_settings():
    """A twentieth of the frames, few steps, 20 replicas for a picosecond or two."""
    settings = yaml.safe_load((APP / "config" / "quick.yaml").read_text())
    short = {"replicas": 20, "n_equilibration": 2, "n_frames": 10, "every": 20}
    settings |= {"every": 20, "n_points": 12}
    settings["matching"] |= {"n_steps": 20, "batch_size": 20}
    settings["entropy"] |= short | {"n_updates": 3, "n_updates_alone": 3, "average_last": 2}
    settings["validation"] |= short
    return settings


@pytest.fixture
def alanine(monkeypatch):
    monkeypatch.syspath_prepend(str(APP))
    return importlib.import_module("alanine")


@pytest.fixture
def ramachandran(alanine):
    return importlib.import_module("ramachandran")


@pytest.fixture
def generate(monkeypatch):
    monkeypatch.syspath_prepend(str(APP))
    module = importlib.import_module("generate")
    assert module.__file__ == str(APP / "generate.py")
    return module


@pytest.fixture(autouse=True)
def forget_modules():
    """Apps have modules of the same names."""
    yield
    for name in ("alanine", "ramachandran", "generate", "routine", "validation", "figures"):
        sys.modules.pop(name, None)


def test_the_reference_is_l_alanine_with_amber_bonds(alanine):
    """Lengths of AMBER ff99SB: C=O 1.229, C-N 1.335, N-CA 1.449, CA-CB 1.526 Å, to 0.02 Å."""
    reference = alanine.load_reference()
    assert len(reference.positions) == sum(r["n_frames"] for r in reference.record["replicas"])
    assert len(reference.positions) > 9000
    found = alanine.coordinates(reference.positions[::50])
    lengths = dict(zip(alanine.BONDS, found["bonds"].mean(axis=0), strict=True))
    for bond, expected in {(1, 2): 1.229, (1, 3): 1.335, (3, 4): 1.449, (4, 5): 1.526}.items():
        assert lengths[bond] == pytest.approx(expected, abs=0.02)
    hand = found["impropers"][:, alanine.IMPROPERS.index((3, 4, 6, 5))]
    assert (hand > 0.0).all() or (hand < 0.0).all()
    left, middle, right, side = (reference.positions[0][i] for i in (3, 4, 6, 5))
    assert np.cross(left - middle, right - middle) @ (side - middle) > 0.0


def test_mapped_forces_have_less_of_the_net_force(alanine):
    """The optimal map differs by shares of the force of the water alone, which are not negative."""
    reference = alanine.load_reference()
    basic, plain = alanine.mapped_forces(reference, "basic")
    best, chosen = alanine.mapped_forces(reference, "optimal")
    np.testing.assert_array_equal(basic, reference.forces)
    np.testing.assert_array_equal(plain, np.eye(10, 11))
    np.testing.assert_array_equal(chosen[:, :10], np.eye(10))
    assert ((chosen[:, 10] > 0.0) & (chosen[:, 10] < 0.5)).all()
    assert chosen[:, 10].sum() == pytest.approx(1.0, abs=1e-6)  # no net force is left
    np.testing.assert_allclose(best.sum(axis=1), 0.0, atol=1e-5)
    assert 0.0 < np.mean(basic**2) - np.mean(best**2) < 0.01 * np.mean(basic**2)
    shares = np.full((10, 1), 0.1)
    even = np.concatenate([np.eye(10), shares], axis=1)
    water = -reference.forces.sum(axis=1, keepdims=True)
    other = aggregate_forces(even, np.concatenate([reference.forces, water], axis=1))
    assert np.mean(best**2) < np.mean(other**2) < np.mean(basic**2)


def test_mapped_forces_are_those_of_the_free_energy(alanine):
    """Equipartition: ``<r . F> = -27 kT`` of ten beads about their centre, and -3 kT of a bond."""
    reference = alanine.load_reference()
    forces, _ = alanine.mapped_forces(reference, "optimal")
    kT = 300.0 * units.KELVIN
    centred = reference.positions - reference.positions.mean(axis=1, keepdims=True)
    along = np.sum(centred * forces, axis=(1, 2)) / kT
    error = along.std() / np.sqrt(len(along))  # of force, which forgets within a picosecond
    assert error < 3.0
    assert abs(along.mean() + 27.0) < 4.0 * error
    for one, other in alanine.BONDS:
        bond = reference.positions[:, one] - reference.positions[:, other]
        along = np.sum(bond * forces[:, one], axis=1) / kT
        assert abs(along.mean() + 3.0) < 4.0 * along.std() / np.sqrt(len(along))


def test_mean_torques_are_those_of_the_free_energy(alanine):
    """About psi, on all that lies beyond it, in bins of ten degrees with 200 frames or more."""
    reference = alanine.load_reference()
    forces, _ = alanine.mapped_forces(reference, "optimal")
    axis = reference.positions[:, 6] - reference.positions[:, 4]
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    arms = reference.positions[:, 7:] - reference.positions[:, 6:7]
    torque = np.einsum("fx,fbx->f", axis, np.cross(arms, forces[:, 7:]))
    psi = alanine.coordinates(reference.positions)["torsions"][:, 1]
    bins = np.digitize(psi, np.linspace(-np.pi, np.pi, 37)) - 1
    counts = np.bincount(bins, minlength=36)
    mean = np.bincount(bins, torque, minlength=36) / np.maximum(counts, 1)
    energy = -300.0 * units.KELVIN * np.log(np.maximum(counts, 1))
    slope = -(np.roll(energy, -1) - np.roll(energy, 1)) / np.radians(20.0)
    many = (counts > 200) & (np.roll(counts, 1) > 50) & (np.roll(counts, -1) > 50)
    assert many.sum() > 8
    assert np.corrcoef(mean[many], slope[many])[0, 1] > 0.95
    assert np.polyfit(slope[many], mean[many], 1)[0] == pytest.approx(1.0, abs=0.15)


def test_priors_are_boltzmann_inverted(alanine):
    """k = kT / <(x - x_0)²>; forces of the whole are those of the kernel with a periodic cell."""
    reference = alanine.load_reference()
    settings = load_config(alanine.AlanineConfig, APP / "config" / "quick.yaml")
    potential = alanine.build_potential(settings, reference)
    bonds = potential.config["terms"][0]["config"]
    found = alanine.coordinates(reference.positions)["bonds"]
    np.testing.assert_allclose(bonds["length"], found.mean(axis=0), rtol=1e-6)
    wanted = 300.0 * units.KELVIN / found.var(axis=0)
    np.testing.assert_allclose(bonds["stiffness"], wanted, rtol=1e-6)
    params = potential.init(jax.random.key(0))
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert names == {"[5]['coefficients']"}  # priors are fixed
    system = alanine.beads(reference.positions[0])
    graph = host_graph(system, 0.1)
    evaluated = jax.jit(evaluate, static_argnums=0)
    alone = evaluated(potential.energy, params, system, graph).forces
    plain = build_potential(potential.architecture, potential.config)
    boxed = make_system(system.positions, alanine.SPECIES, cell=50.0, masses=1.0)
    inside = evaluated(plain.energy, params, boxed.astype(jnp.float32), graph).forces
    np.testing.assert_allclose(alone, inside, atol=1e-3)
    assert float(jnp.abs(jnp.sum(alone, axis=0)).max()) < 1e-3


def test_no_bead_falls_onto_one_two_bonds_away(alanine):
    """CB turned about N-CA to within 45 degrees of C: out of reach, and what is usual stays."""
    reference = alanine.load_reference()
    settings = load_config(alanine.AlanineConfig, APP / "config" / "quick.yaml")
    potential = alanine.build_potential(settings, reference)
    start = alanine.beads(reference.positions[0])
    params, graph = potential.init(jax.random.key(0)), host_graph(start, 0.1)
    energy = jax.jit(lambda x: potential.energy(params, start._replace(positions=x), graph).sum())
    x = np.asarray(start.positions, float)
    axis, bond = x[3] - x[4], x[5] - x[4]
    angles, energies = [], []
    for turn in np.radians(np.arange(-180.0, 180.0, 5.0)):
        places = x.copy()
        places[5] = x[4] + Rotation.from_rotvec(turn * axis / np.linalg.norm(axis)).apply(bond)
        angles.append(ase.geometry.get_angles(places[5:6] - places[4], places[6:7] - places[4])[0])
        energies.append(float(energy(jnp.asarray(places, jnp.float32))) / settings.kT)
    near, energies = np.array(angles) < 45.0, np.array(energies) - min(energies)
    assert near.sum() >= 8
    assert energies[near].min() > 300.0
    repulsion = potential.config["terms"][4]
    assert repulsion["architecture"] == "listed_repulsion"
    far = len(alanine.FAR)
    pairs = np.array(repulsion["config"]["atoms"][far:])
    lengths = np.linalg.norm(np.diff(reference.positions[:, pairs], axis=2), axis=-1)
    usual = settings.prior.epsilon * (settings.prior.near_sigma / lengths) ** 12 / settings.kT
    assert usual.mean() < 0.1


def test_bins_populations_and_surfaces(ramachandran):
    """Angles in known places: one in each basin, and one of them twice."""
    angles = np.radians(
        [[-150.0, 150.0], [-75.0, 140.0], [-60.0, -40.0], [-60.0, -40.0], [55.0, 40.0]]
    )
    np.testing.assert_allclose(ramachandran.basins(angles), [0.2, 0.2, 0.4, 0.2])
    counts = ramachandran.histogram(angles)
    assert counts.shape == (60, 60)
    assert counts.sum() == 5.0
    assert counts[20, 23] == 2.0  # 6 degree bins from -180 on
    surface = ramachandran.surface(counts, 2.0)
    assert surface[20, 23] == 0.0
    np.testing.assert_allclose(surface[counts == 1], 2.0 * np.log(2.0))
    assert np.isnan(surface[counts == 0]).all()


def test_errors_of_a_surface_are_root_mean_squares(ramachandran):
    """Two bins of equal weight, populations 1:1 and 3:1: both are off by kT ln 3 / 2."""
    reference, found = np.zeros((2, 60, 60))
    reference[0, :3], found[0, :2] = (50.0, 50.0, 2.0), (30.0, 10.0)
    error = ramachandran.surface_error(found, reference, 2.0)
    assert error == pytest.approx(np.log(3.0))
    assert ramachandran.surface_error(7.0 * reference, reference, 2.0) == pytest.approx(
        0.0, abs=1e-12
    )


def test_errors_of_populations_and_divergences_come_from_the_scatter(ramachandran):
    """Pieces of uniform angles: half of a basin's share is its phi range, a third of a turn."""
    pieces = np.random.default_rng(0).uniform(-np.pi, np.pi, (100, 50, 2))
    sampled = ramachandran.Sampled(pieces)
    shares, errors = sampled.populations()
    assert abs(shares[3] - 0.5) < 4.0 * errors[3]
    assert errors[3] == pytest.approx(np.sqrt(0.25 / 5000), rel=0.3)
    value, error = sampled.divergence(sampled.counts)
    assert value == 0.0
    assert 0.0 < error < 0.1


def test_torsions_of_other_frames_are_those_of_ase(ramachandran, monkeypatch, tmp_path):
    points = np.random.default_rng(1).normal(size=(6, 5, 3))
    np.savez(tmp_path / "frames.npz", coordinates=points)
    monkeypatch.setattr(ramachandran, "fetch", lambda name: tmp_path / "frames.npz")
    found = np.degrees(ramachandran.outside()) % 360.0
    for angles, place in zip(found, points, strict=True):
        atoms = ase.Atoms("C5", place)
        wanted = [atoms.get_dihedral(k, k + 1, k + 2, k + 3) for k in (0, 1)]
        np.testing.assert_allclose(angles, wanted, atol=1e-3)


@pytest.mark.parametrize(("phi", "psi"), [(-75.0, 145.0), (60.0, -30.0)])
def test_the_peptide_is_built_as_its_table_says(generate, phi, psi):
    """Dihedrals as asked, both peptide bonds trans, the hand of L-alanine, no overlaps."""
    place = dict(zip(generate.NAMES, generate.peptide(phi, psi), strict=True))
    assert len(place) == 22

    def turn(*names):
        system = make_system(np.array([place[name] for name in names]), 1)
        return float(np.degrees(dihedral(((0, 1, 2, 3),)).values(system)[0]))

    assert turn("ACE:C", "ALA:N", "ALA:CA", "ALA:C") == pytest.approx(phi)
    assert turn("ALA:N", "ALA:CA", "ALA:C", "NME:N") == pytest.approx(psi)
    assert abs(turn("ACE:CH3", "ACE:C", "ALA:N", "ALA:CA")) == pytest.approx(180.0)
    assert abs(turn("ALA:CA", "ALA:C", "NME:N", "NME:C")) == pytest.approx(180.0)
    left, middle, right, side = (place[f"ALA:{name}"] for name in ("N", "CA", "C", "CB"))
    assert np.cross(left - middle, right - middle) @ (side - middle) > 0.0
    everything = np.array(list(place.values()))
    distances = np.linalg.norm(everything[:, None] - everything[None], axis=-1)
    assert distances[~np.eye(22, dtype=bool)].min() > 1.0
    assert len(generate.bonds()) == 21


def test_collecting_maps_hydrogens_onto_their_beads(generate, tmp_path, monkeypatch, capsys):
    """Forces of kJ/mol/nm come out in eV/Å, summed over each bead and its hydrogens."""
    rng, names = np.random.default_rng(0), generate.NAMES
    positions = generate.peptide(-75.0, 145.0)[None] + np.zeros((3, 1, 1))
    forces = rng.normal(size=(3, 22, 3)) * 500.0
    folder = tmp_path / "runs" / "replica-0"
    folder.mkdir(parents=True)
    settings = dict.fromkeys(generate.OF_REPLICA, 0) | {"temperature_kelvin": 300.0}
    (folder / "settings.json").write_text(json.dumps(settings))
    own = {"box": np.eye(3), "checkpoint": np.zeros(1, np.uint8)}
    for k, rows in enumerate((slice(0, 1), slice(1, 3))):
        generate.write(
            folder / f"piece-{k:05d}.npz", positions=positions[rows], forces=forces[rows], **own
        )
    target = tmp_path / "data"
    monkeypatch.setattr(
        sys, "argv", ["generate.py", "collect", str(tmp_path / "runs"), "--to", str(target)]
    )
    generate.main()
    assert "1 replicas, 0.003 ns" in capsys.readouterr().out
    with np.load(target / "reference-00-0.npz", allow_pickle=False) as found:
        force, place = found["force"].astype(float), 1e-3 * found["position_milliangstrom"]
    scale = units.KJ_PER_MOL / units.NANOMETER
    group = [names.index(f"ALA:{atom}") for atom in ("CB", "HB1", "HB2", "HB3")]
    np.testing.assert_allclose(
        force[:, 5], scale * forces[:, group].sum(axis=1), rtol=1e-3, atol=1e-3
    )
    oxygen = names.index("ACE:O")
    np.testing.assert_allclose(force[:, 2], scale * forces[:, oxygen], rtol=1e-3, atol=1e-3)
    apart = np.linalg.norm(place[:, 3] - place[:, 4], axis=-1)
    np.testing.assert_allclose(apart, 1.45, atol=2e-3)
    other = folder.with_name("replica-1")
    shutil.copytree(folder, other)
    (other / "settings.json").write_text(json.dumps(settings | {"platform": 1}))
    generate.main()
    assert "2 replicas, 0.006 ns" in capsys.readouterr().out
    (other / "settings.json").write_text(json.dumps(settings | {"temperature_kelvin": 310.0}))
    with pytest.raises(SystemExit, match=r"has other \['temperature_kelvin'\] than"):
        generate.main()
    assert len(list(target.glob("reference-*.npz"))) == 2  # what there was is still there
    monkeypatch.setattr(sys, "argv", ["generate.py", "collect", str(target)])
    with pytest.raises(SystemExit, match="there are no replicas"):
        generate.main()


def command(folder, settings=None):
    return app_command(APP, folder, settings or small_settings())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = finished(command(folder))
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.slow
def test_output_is_complete_and_learning_lowers_the_relative_entropy(undisturbed):
    results = json.loads((undisturbed / "results.json").read_text())
    metrics = results["metrics"]
    for name in ("prior", "force_matching", "relative_entropy", "combined"):
        assert 0.0 < metrics[f"jsd_{name}"]["value"] < np.log(2.0)
        shares = [metrics[f"{basin}_{name}"]["value"] for basin in ("beta", "PII", "right", "left")]
        assert sum(shares) == pytest.approx(1.0)
    assert metrics["jsd_floor"]["value"] > 0.0
    assert metrics["speed"]["value"] > 0.0
    assert results["reference"]["settings"]["force_field"] == ["amber99sbildn.xml", "tip3p.xml"]
    lines = (undisturbed / "entropy" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["relative_entropy"] < -0.1
    report = (undisturbed / "report.html").read_text()
    assert report.count("<svg") == 4
    assert "src=" not in report


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_models(undisturbed, tmp_path):
    arguments = command(tmp_path)
    killed(arguments, tmp_path / "out" / "combined" / "checkpoints", "step-*.safetensors")
    assert finished(arguments).returncode == 0
    for name in ("matched", "entropy", "combined"):
        path = f"model-{name}/weights.safetensors"
        assert (tmp_path / "out" / path).read_bytes() == (undisturbed / path).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_point": 24}, "did you mean `n_points`?"),
        ({"data": "nowhere"}, "there is no `reference-*.npz` in nowhere; make it by generate.py"),
    ],
)
def test_bad_settings_are_named(change, message, tmp_path):
    done = finished(command(tmp_path, small_settings() | change))
    assert done.returncode != 0
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
