"""Relative entropy minimisation of Gaussians, whose relative entropy is a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from difftre_ensembles import KT, harmonic_energy, harmonic_sampler

from mosaicmd.difftre import NaturalGradient, relative_entropy
from mosaicmd.kernel.graphs import edge_components, sum_edges
from mosaicmd.kernel.routines import alternate
from mosaicmd.kernel.simulation import SimulationError
from mosaicmd.kernel.training import averaged_params, tail_average, train

N_ATOMS = 4
WANTED = 2.0  # eV/Å², the spring constant of the reference


def gaussian_reference(n_frames, *, k=WANTED, kT=KT, seed=5):
    """Frames of a reference that another model can be measured against exactly."""
    sampler = harmonic_sampler(n_frames, n_atoms=N_ATOMS, kT=kT, seed=seed)
    return sampler.sample({"k": jnp.asarray(k)}, sampler.init())[1]


def learner(update, *, n_frames=4000, n_reference=4000, **options):
    sampler = harmonic_sampler(n_frames, n_atoms=N_ATOMS)
    reference = gaussian_reference(n_reference)
    options = {"frames_at_once": 500} | options
    return relative_entropy(harmonic_energy, None, sampler, reference, update, **options)


def best_k(reference):
    """The minimum: ``<r²>`` of the model, ``3 kT / k``, is that of the reference frames."""
    return 3.0 * KT / float(jnp.mean(jnp.sum(reference.systems.positions**2, axis=-1)))


def gaussian_relative_entropy(k, wanted=WANTED):
    """Of ``3 N`` independent Gaussians of variance kT / wanted to ones of kT / k, nats."""
    ratio = k / wanted
    return 0.5 * 3 * N_ATOMS * (ratio - 1.0 - np.log(ratio))


@pytest.mark.parametrize(
    ("update", "n_steps"),
    [(NaturalGradient(), 12), (optax.adam(0.05), 80)],
    ids=["natural", "adam"],
)
def test_the_minimum_is_where_the_second_moments_agree(update, n_steps):
    """To within 4 sigma of 12 x 4000 squares, whose relative scatter is sqrt(2)."""
    algorithm = tail_average(learner(update), 5)
    state = train(algorithm, {"k": jnp.asarray(1.0)}, n_steps, quiet=True)
    found, wanted = float(averaged_params(state)["k"]), best_k(gaussian_reference(4000))
    assert abs(found / wanted - 1.0) < 4.0 * np.sqrt(2.0 / (3 * N_ATOMS * 4000))


def test_the_relative_entropy_falls_as_that_of_gaussians():
    """Frame weights of each step have a variance below 1, so errors are some hundredths."""
    algorithm = learner(NaturalGradient(max_divergence=0.5), n_frames=8000)
    state = algorithm.init({"k": jnp.asarray(1.0)})
    total = 0.0
    for _ in range(8):
        state, metrics = algorithm.step(state, None)
        total = metrics["relative_entropy"]
        assert metrics["divergence"] <= 0.5 * (1.0 + 1e-6)
    change = gaussian_relative_entropy(float(state.params["k"])) - gaussian_relative_entropy(1.0)
    assert change < -1.0
    assert total == pytest.approx(change, abs=0.1)


def test_the_gradient_is_that_of_gaussians():
    """dS/dk = 3 N / 2 (1 / wanted - 1 / k); its error is that of both means of r²."""
    n_frames = 20_000
    algorithm = learner(optax.sgd(1.0), n_frames=n_frames, n_reference=n_frames)
    state = algorithm.init({"k": jnp.asarray(1.0)})
    after, _ = algorithm.step(state, None)
    gradient = 1.0 - float(after.params["k"])
    wanted = 0.5 * 3 * N_ATOMS * (1.0 / WANTED - 1.0)
    error = 0.5 * np.sqrt(2.0 * 3 * N_ATOMS / n_frames * (1.0 + 1.0 / WANTED**2))
    assert abs(gradient - wanted) < 4.0 * error


def test_a_natural_step_is_newtons():
    """With unit gain and no bound, ``delta = -F^-1 g`` with the mean of both metrics."""
    step = NaturalGradient(max_divergence=1e6, ridge=1e-12)
    n_frames = 20_000
    algorithm = learner(step, n_frames=n_frames, n_reference=n_frames)
    after, _ = algorithm.step(algorithm.init({"k": jnp.asarray(1.5)}), None)
    half = 0.5 * 3 * N_ATOMS
    gradient = half * (1.0 / WANTED - 1.0 / 1.5)
    metric = 0.5 * half * (1.0 / WANTED**2 + 1.0 / 1.5**2)
    assert float(after.params["k"]) - 1.5 == pytest.approx(-gradient / metric, rel=0.05)


def test_frames_are_reused_while_they_represent_the_parameters():
    algorithm = learner(optax.sgd(1e-6), reuse_fraction=0.9)
    state = algorithm.init({"k": jnp.asarray(1.0)})
    for _ in range(3):
        state, metrics = algorithm.step(state, None)
    assert metrics["simulations"] == 1
    assert metrics["n_eff"] > 0.99
    same = algorithm.adopt(state, state.params)
    assert float(same.samples.n_eff) == float(state.samples.n_eff)
    state, metrics = algorithm.step(algorithm.adopt(state, {"k": jnp.asarray(2.0)}), None)
    assert metrics["simulations"] == 2


def test_reused_frames_give_the_gradient_of_their_parameters():
    """After the parameters move without a new simulation, averages are reweighted."""
    n_frames = 20_000
    algorithm = learner(optax.sgd(1.0), n_frames=n_frames, n_reference=1000, reuse_fraction=0.0)
    state, _ = algorithm.step(algorithm.init({"k": jnp.asarray(1.0)}), None)
    for k in (1.0, 1.1):
        there = algorithm.adopt(state, {"k": jnp.asarray(k)})
        after, metrics = algorithm.step(there, None)
        assert metrics["simulations"] == 1
        wanted = 0.5 * 3 * N_ATOMS * (1.0 / best_k(gaussian_reference(1000)) - 1.0 / k)
        assert k - float(after.params["k"]) == pytest.approx(wanted, abs=0.1)


def test_a_step_that_breaks_the_simulation_is_taken_halfway_back():
    """Springs weaker than 0.9 break; from 1.0 to 0.7 the second half-way point is 0.925."""
    sampler = harmonic_sampler(200, n_atoms=N_ATOMS)
    tried = []

    def fragile(params, state):
        tried.append(float(params["k"]))
        if tried[-1] < 0.9:
            nothing = dict.fromkeys(("replica", "checkpoint", "trajectory"))
            raise SimulationError("broken", step=1, atom=0, temperature_kelvin=1e6, **nothing)
        return sampler.sample(params, state)

    algorithm = relative_entropy(
        harmonic_energy,
        None,
        sampler._replace(sample=fragile),
        gaussian_reference(200),
        optax.sgd(0.0),
    )
    start = algorithm.init({"k": jnp.asarray(1.0)})
    state, _ = algorithm.step(start, None)
    state, metrics = algorithm.step(algorithm.adopt(state, {"k": jnp.asarray(0.7)}), None)
    np.testing.assert_allclose(tried, [1.0, 0.7, 0.85, 0.925])
    assert float(state.params["k"]) == pytest.approx(0.925)
    assert metrics["simulations"] == 2
    with pytest.raises(SimulationError):
        algorithm.step(algorithm.init({"k": jnp.asarray(0.5)}), None)


def test_parameters_that_no_frame_feels_stay():
    """The tail of a function that only the rarest frames reach is hardly moved."""

    def energy(params, system, graph):
        outside = jnp.maximum(jnp.sum(system.positions**2, axis=-1) - params["at"], 0.0)
        rare = params["rare"] * 1e-6 * outside
        return harmonic_energy(params, system, graph) + rare

    sampler, start = harmonic_sampler(500, n_atoms=N_ATOMS), {"k": jnp.asarray(1.0)}
    algorithm = relative_entropy(
        lambda p, s, g: energy(p | {"at": 0.1}, s, g),
        None,
        sampler,
        gaussian_reference(500),
        NaturalGradient(),
    )
    state, _ = algorithm.step(algorithm.init(start | {"rare": jnp.asarray(0.0)}), None)
    assert float(state.params["k"]) > 1.1
    assert abs(float(state.params["rare"])) < 1e-3


def test_a_routine_hands_parameters_on():
    both = alternate(learner(NaturalGradient()), learner(optax.adam(0.05)), counts=(2, 3))
    state = train(both, {"k": jnp.asarray(1.0)}, 10, quiet=True)
    assert float(state.params["k"]) == pytest.approx(WANTED, rel=0.1)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    algorithm = learner(NaturalGradient(gain=0.5), n_frames=500, n_reference=500)
    start = {"k": jnp.asarray(1.0)}
    whole = train(algorithm, start, 6, quiet=True)
    train(algorithm, start, 3, directory=tmp_path, quiet=True)
    resumed = train(algorithm, start, 6, directory=tmp_path, quiet=True)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def springs_by_graph(params, system, graph):
    """A spring between all atoms within the cutoff."""
    x, y, z = edge_components(system, graph)
    return sum_edges(0.25 * params["k"] * (x * x + y * y + z * z), graph, system.n_atoms)


def springs_by_position(params, system, graph):
    """The same without a graph, as ``sum_ij r_ij² = 2 N sum_i (r_i - <r>)²``."""
    del graph
    centred = system.positions - jnp.mean(system.positions, axis=0, keepdims=True)
    return 0.5 * N_ATOMS * params["k"] * jnp.sum(centred**2, axis=-1)


@pytest.mark.parametrize("update", [NaturalGradient(), optax.adam(0.05)], ids=["natural", "adam"])
def test_energies_of_a_graph_are_learned_alike(update):
    sampler, reference = harmonic_sampler(200, n_atoms=N_ATOMS), gaussian_reference(300)
    found = []
    for energy_fn, cutoff in ((springs_by_graph, 5.0), (springs_by_position, None)):
        algorithm = relative_entropy(energy_fn, cutoff, sampler, reference, update)
        state, metrics = algorithm.step(algorithm.init({"k": jnp.asarray(1.0)}), None)
        found.append([float(state.params["k"]), *metrics.values()])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    assert found[0][0] > 1.0


def test_a_reference_of_another_kind_is_refused():
    sampler = harmonic_sampler(10, n_atoms=N_ATOMS)
    with pytest.raises(ValueError, match="was sampled at kT"):
        relative_entropy(
            harmonic_energy, None, sampler, gaussian_reference(10, kT=0.03), NaturalGradient()
        )
    other = harmonic_sampler(10, n_atoms=2)
    with pytest.raises(ValueError, match=r"frames of shape \(4, 3\), the model \(2, 3\)"):
        relative_entropy(harmonic_energy, None, other, gaussian_reference(10), NaturalGradient())
    with pytest.raises(ValueError, match="`gain` must be positive"):
        NaturalGradient(gain=0.0)
    with pytest.raises(ValueError, match="reuse_fraction"):
        learner(NaturalGradient(), reuse_fraction=1.5)
