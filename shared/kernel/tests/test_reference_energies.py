"""Reference energies: those that made the data, and what remains of large numbers in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matching_data import CUTOFF, PAIR, TRUE, labelled, params_of

from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.potentials import build_potential, sum_potentials, total_energy
from mosaicmd.kernel.reference_energies import atomic_energies, build, fit_reference_energies
from mosaicmd.kernel.systems import make_system
from mosaicmd.kernel.testing import check_atom_energies, random_system

HYDROGEN, OXYGEN = -13.587222780835477, -2041.8396277138  # eV, ωB97X, as in MD22


def molecule(n_hydrogen, n_oxygen, energy):
    species = np.array([1] * n_hydrogen + [8] * n_oxygen)
    positions = 2.0 * np.arange(3.0 * len(species)).reshape(-1, 3)
    return make_system(positions, species), Labels(energy=energy)


def total(n_hydrogen, n_oxygen):
    return n_hydrogen * HYDROGEN + n_oxygen * OXYGEN


def test_energies_that_made_the_data_are_found():
    data = [molecule(h, o, total(h, o)) for h, o in ((2, 1), (2, 2), (6, 3), (2, 0))]
    data.append((data[0][0], Labels()))  # no energy: left out
    energies, info = fit_reference_energies(data)
    assert energies == pytest.approx({1: HYDROGEN, 8: OXYGEN}, rel=1e-12)
    assert info.is_unique
    assert info.rmse < 1e-10


def test_a_single_composition_gets_the_least_norm_and_is_told():
    """Water: (2 e_H + e_O) / 3 = E / 3 has the solution of least norm e = (2, 1) E / 5."""
    data = [molecule(2 * n, n, n * -2079.0) for n in (1, 2, 3)]
    with pytest.warns(UserWarning, match=r"1 independent compositions of the 2 species \[1, 8\]"):
        energies, info = fit_reference_energies(data)
    assert energies == pytest.approx({1: -2079.0 * 2 / 5, 8: -2079.0 / 5}, rel=1e-12)
    assert (info.rank, info.n_species, info.is_unique) == (1, 2, False)
    assert info.rmse < 1e-10


def test_large_energies_are_subtracted_before_they_are_rounded():
    """Around -65 keV float32 knows energies to 4 meV only; here 1e-5 eV survives."""
    interaction = 0.12345
    data = [molecule(12, 32, total(12, 32) + interaction)]
    (example,) = make_examples(
        data, 1.0, reference_energies={1: HYDROGEN, 8: OXYGEN}, dtype=np.float32
    )
    assert example.targets.energy.dtype == np.float32
    assert abs(float(example.targets.energy) - interaction) < 1e-8
    rounded = float(np.float32(data[0][1].energy)) - total(12, 32)
    assert abs(rounded - interaction) > 1e-4  # what would be left otherwise
    with pytest.raises(ValueError, match=r"structure 0: .* no energy for species \[8\]"):
        make_examples(data, 1.0, reference_energies={1: HYDROGEN})


def test_a_model_file_gives_total_energies_back(tmp_path):
    """Model plus reference energies, saved and loaded, against their separate values."""
    potential = sum_potentials(PAIR, atomic_energies({8: OXYGEN, 1: HYDROGEN}))
    save_model(tmp_path / "model", potential, (params_of(TRUE), {}))
    architectures = {"pair": lambda config: PAIR, "atomic_energies": build}
    loaded, params = load_model(tmp_path / "model", architectures=architectures)
    system, labels = labelled()[0]
    graph = host_graph(system, CUTOFF)
    found = total_energy(loaded.energy, params, system, graph)
    counts = np.bincount(system.species, minlength=9)
    expected = labels.energy + counts[1] * HYDROGEN + counts[8] * OXYGEN
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_a_model_file_needs_no_further_architectures():
    """The kernel itself provides the term."""
    potential = build_potential("atomic_energies", {"energies": {"14": -5.25}})
    system = make_system(np.zeros((1, 3)), 14)
    energies = potential.energy({}, system, host_graph(system, 1.0))
    np.testing.assert_array_equal(energies, [-5.25])


def test_it_is_a_constant_that_padding_does_not_have():
    potential = atomic_energies({1: -1.5, 8: 2.5})
    system = random_system(0)
    check_atom_energies(potential, {}, system)
    graph = host_graph(system, 1.0)
    gradient = jax.grad(
        lambda positions: jnp.sum(potential.energy({}, system._replace(positions=positions), graph))
    )(system.positions)
    np.testing.assert_array_equal(gradient, 0.0)
    single = potential.energy({}, system.astype(jnp.float32), graph)
    assert single.dtype == jnp.float32
    with pytest.raises(ValueError, match=r"`species` \[7\] of the system are unknown"):
        potential.check(system._replace(species=jnp.full_like(system.species, 7)))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="no structure has an `energy`"):
        fit_reference_energies([(random_system(0), Labels())])
    for energies in ({}, {0: 1.0}, {1: np.inf}):
        with pytest.raises(ValueError, match="must be finite"):
            atomic_energies(energies)
