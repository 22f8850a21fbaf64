"""DiffTRe as a loop: what it finds, when it samples, and that it can be resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from difftre_ensembles import (
    KT,
    harmonic_energy,
    harmonic_sampler,
    mean_square,
    uniform_sampler,
)

from mosaicmd.difftre import StatePointData, Target, difftre, first_order, gauss_newton
from mosaicmd.kernel.descent import descent
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.observables import Observable, rdf
from mosaicmd.kernel.routines import alternate
from mosaicmd.kernel.simulation import ContactError, SimulationError
from mosaicmd.kernel.training import averaged_params, tail_average, train


def harmonic_point(name="well", *, goal=2.5, kT=KT, n_frames=2000, seed=0):
    target = Target(observable=mean_square(), value=kT / goal, tolerance=2e-4)
    sampler = harmonic_sampler(n_frames, kT=kT, seed=seed)
    return StatePointData(name=name, sampler=sampler, targets=[target])


def broken_run():
    return SimulationError(
        "the run broke at step 7",
        step=7,
        atom=0,
        replica=None,
        temperature_kelvin=1e5,
        checkpoint=None,
        trajectory=None,
    )


def start():
    return {"k": jnp.asarray(1.0)}


def test_gauss_newton_learns_a_spring_constant():
    """Twelve simulations of 2000 frames; sampling leaves 1 % in k, the tail average less."""
    algorithm = tail_average(difftre(harmonic_energy, None, [harmonic_point()], gauss_newton()), 6)
    state = train(algorithm, start(), 12, quiet=True)
    assert abs(averaged_params(state)["k"] - 2.5) < 4 * 2.5 * np.sqrt(2.0 / 3 / 2000 / 6)


def test_adam_learns_a_spring_constant():
    update = first_order(optax.adam(optax.exponential_decay(0.2, 10, 0.5)))
    algorithm = difftre(harmonic_energy, None, [harmonic_point()], update)
    state = train(algorithm, start(), 60, quiet=True)
    assert abs(state.params["k"] - 2.5) < 0.1


def test_state_points_agree_on_one_parameter():
    """Wells at two temperatures, the same spring: both targets are met together."""
    points = [harmonic_point("cold", kT=0.02), harmonic_point("hot", kT=0.03, seed=1)]
    state = train(difftre(harmonic_energy, None, points, gauss_newton()), start(), 10, quiet=True)
    assert abs(state.params["k"] - 2.5) < 0.1
    assert int(state.n_simulations) > 2


def test_frames_are_reused_until_they_lose_their_effective_size():
    still = first_order(optax.sgd(0.0))
    state = train(difftre(harmonic_energy, None, [harmonic_point()], still), start(), 5, quiet=True)
    assert int(state.n_simulations) == 1
    algorithm = difftre(harmonic_energy, None, [harmonic_point()], still, reuse_fraction=1.0)
    moving = first_order(optax.sgd(1e-4))
    algorithm = difftre(harmonic_energy, None, [harmonic_point()], moving, reuse_fraction=1.0)
    state = train(algorithm, start(), 5, quiet=True)
    assert int(state.n_simulations) == 5
    for_ever = difftre(harmonic_energy, None, [harmonic_point()], moving, reuse_fraction=0.0)
    state = train(for_ever, start(), 5, quiet=True)
    assert int(state.n_simulations) == 1
    assert float(state.params["k"]) != 1.0


def test_parameters_from_outside_change_the_effective_size_by_the_closed_form():
    """Fraction ``exp(-KL)`` with ``KL = 3/2 (r - 1 - ln r)``, ``r = k_old / k_new``."""
    algorithm = difftre(harmonic_energy, None, [harmonic_point()], first_order(optax.sgd(0.0)))
    blank = algorithm.init(start())
    assert float(algorithm.adopt(blank, {"k": jnp.asarray(2.0)}).samples[0].n_eff) == 0.0
    state, _ = algorithm.step(blank, None)
    same = algorithm.adopt(state, state.params)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    for k in (1.2, 0.9):
        moved = algorithm.adopt(state, {"k": jnp.asarray(k)})
        divergence = 1.5 * (1.0 / k - 1.0 + np.log(k))
        fraction = float(moved.samples[0].n_eff) / 2000
        np.testing.assert_allclose(fraction, np.exp(-divergence), rtol=0.01)
        assert float(moved.params["k"]) == k
    lost = algorithm.adopt(state, {"k": jnp.asarray(np.nan)})
    assert float(lost.samples[0].n_eff) == 1.0


def test_frames_of_other_parameters_are_not_reused_in_a_routine():
    """Another algorithm moves k a little (frames serve on), then far (they are replaced)."""
    goal = lambda params, batch: 0.5 * (params["k"] - batch) ** 2  # noqa: E731
    point = harmonic_point(n_frames=500)
    still = difftre(harmonic_energy, None, [point], first_order(optax.sgd(0.0)))
    routine = alternate(water=still, move=descent(goal, optax.sgd(1.0)))
    state, seen = routine.init(start()), []
    for k in (1.05, 3.0, 3.0):
        state, metrics = routine.step(state, None)
        seen.append(metrics["water/simulations"])
        state, _ = routine.step(state, {"move": k})
    assert seen == [1, 1, 2]


def test_a_resumed_run_ends_in_the_same_bits(tmp_path):
    def algorithm():
        update = first_order(optax.adam(0.01))
        return difftre(harmonic_energy, None, [harmonic_point(n_frames=100)], update)

    whole = train(algorithm(), start(), 7, directory=tmp_path / "whole", quiet=True)
    train(algorithm(), start(), 3, directory=tmp_path / "parts", quiet=True)
    parts = train(algorithm(), start(), 7, directory=tmp_path / "parts", quiet=True)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert [line["step"] for line in read_metrics(tmp_path / "parts" / "metrics.jsonl")] == [
        *range(1, 8)
    ]


def test_samples_have_their_shapes_before_the_first_simulation():
    """In float32, with a curve and an average that is no mean: what a resume needs."""
    bins = rdf(r_max=4.0, n_bins=7)
    variance = Observable(
        name="variance",
        unit="Å⁴",
        per_frame=lambda p, s, g, m: jnp.mean(s.positions**2, axis=0),
        combine=lambda v, w: jnp.sum(w @ v**2 - (w @ v) ** 2),
    )
    sampler = uniform_sampler(4, n_atoms=20, cell=9.0)
    draw, single = sampler.sample, sampler.system.astype(jnp.float32)

    def sample(params, state):
        state, trajectory = draw(params, state)
        return state, trajectory._replace(systems=trajectory.systems.astype(jnp.float32))

    point = StatePointData(
        name="gas",
        sampler=sampler._replace(sample=sample, system=single),
        targets=[
            Target(observable=bins, value=np.ones(7), tolerance=0.1),
            Target(observable=variance, value=1.0, tolerance=0.1),
        ],
    )
    algorithm = difftre(harmonic_energy, None, [point], first_order(optax.sgd(0.0)))
    before = algorithm.init(start())
    after, _ = algorithm.step(before, None)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), s.samples) for s in (before, after)]
    assert shapes[0] == shapes[1]
    assert before.samples[0].fixed["rdf"].dtype == jnp.float32


def test_state_points_are_checked():
    with pytest.raises(ValueError, match="nothing to learn from"):
        difftre(harmonic_energy, None, [], gauss_newton())
    with pytest.raises(ValueError, match="share a name"):
        difftre(harmonic_energy, None, [harmonic_point(), harmonic_point()], gauss_newton())


@pytest.mark.parametrize("how", ["on the way", "at the start"])
def test_a_step_too_long_for_the_dynamics_is_taken_back_halfway(how):
    """The sampler breaks above k = 2.6; steps end below it, and the retreats are counted."""
    point = harmonic_point(goal=2.5)
    draw = point.sampler.sample

    def fragile(params, state):
        if params["k"] > 2.6:
            raise broken_run() if how == "on the way" else ContactError("the force on atom 0")
        return draw(params, state)

    sampler = point.sampler._replace(sample=fragile)
    point = StatePointData(name="well", sampler=sampler, targets=point.targets)
    far = difftre(harmonic_energy, None, [point], first_order(optax.adam(4.0)))
    state, first = far.step(far.init(start()), None)
    assert state.params["k"] > 2.6
    state, second = far.step(state, None)
    assert (first["retreats"], second["retreats"]) == (0, 2)
    assert second["simulations"] == 4
    np.testing.assert_allclose(state.samples[0].params["k"], 2.0, rtol=1e-6)  # 5, 3, 2


def test_a_start_that_breaks_is_an_error():
    point = harmonic_point()

    def broken(params, state):
        raise broken_run()

    point = StatePointData(
        name="well", sampler=point.sampler._replace(sample=broken), targets=point.targets
    )
    algorithm = difftre(harmonic_energy, None, [point], gauss_newton())
    with pytest.raises(SimulationError, match="broke at step 7"):
        algorithm.step(algorithm.init(start()), None)
