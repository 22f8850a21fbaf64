"""Force matching: the gradient by hand, known parameters found again, and exact resumes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matching_data import CUTOFF, START, TRUE, energy, labelled, params_of

from mosaicmd.kernel.batches import Batches
from mosaicmd.kernel.early_stopping import stop_when_stale, watch
from mosaicmd.kernel.examples import make_examples
from mosaicmd.kernel.force_matching import evaluate_labels, force_matching
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.label_errors import MatchingLoss
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.routines import alternate
from mosaicmd.kernel.training import train

LOSS = MatchingLoss(energy=2.0, forces=1.0, stress=50.0)


@functools.cache
def examples(dtype=None):
    return tuple(make_examples(labelled(12), CUTOFF, dtype=dtype))


def small(optimizer=None, **options):
    return force_matching(energy, LOSS, optimizer or optax.adam(1e-2), **options)


def loss_by_hand(params, data):
    """The loss of the module docstring, structure by structure."""
    total, n_atoms = 0.0, sum(system.n_atoms for system, _ in data)
    for system, labels in data:
        found = evaluate(energy, params, system, host_graph(system, CUTOFF), stress=True)
        total += 2.0 * ((found.energy - labels.energy) / system.n_atoms) ** 2 / len(data)
        total += jnp.sum((found.forces - labels.forces) ** 2) / (3 * n_atoms)
        total += 50.0 * jnp.mean((found.stress - labels.stress) ** 2) / len(data)
    return total


@pytest.mark.parametrize("options", [{"n_slots": 2}, {"separate": True}])
def test_loss_and_gradient_by_hand(options):
    """Plain gradient descent moves by the gradient of the loss over all structures."""
    data = labelled(12)[:4]
    batches = Batches(make_examples(data, CUTOFF), 4, **options)
    algorithm = small(optax.sgd(1.0))
    params = params_of(START)
    state, metrics = algorithm.step(algorithm.init(params), batches(1))
    value, gradient = jax.jit(lambda p: jax.value_and_grad(loss_by_hand)(p, data))(params)
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-12)
    assert metrics["gradient_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-10)
    for name in TRUE:
        moved = params[name] - state.params[name]
        np.testing.assert_allclose(moved, gradient[name], rtol=1e-10)


def test_known_parameters_are_found_again_in_full_batches():
    """L-BFGS of optax on noiseless labels, to 1e-6."""
    batches = Batches(examples(), 12)
    algorithm = small(optax.lbfgs(), average_decay=0.0)
    state = train(algorithm, params_of(START), 25, batches=batches, quiet=True)
    for name, value in TRUE.items():
        np.testing.assert_allclose(state.best[name], value, rtol=1e-6)


def test_known_parameters_are_found_again_in_small_batches_and_float32_rounding():
    """Adam with a decaying rate: to 1e-6 in float64, to rounding in float32."""
    schedule = optax.exponential_decay(0.03, 1, 0.975)
    for dtype, tolerance in ((np.float64, 1e-6), (np.float32, 1e-5)):
        batches = Batches(examples(dtype), 4, seed=1)
        algorithm = small(optax.adam(schedule, b2=0.9), average_decay=0.5)
        state = train(algorithm, params_of(START, dtype), 500, batches=batches, quiet=True)
        for name, value in TRUE.items():
            assert state.best[name].dtype == dtype
            np.testing.assert_allclose(state.best[name], value, rtol=tolerance)
    errors = evaluate_labels(energy, state.best, batches)
    assert errors["rmse_forces_mev_per_angstrom"] < 0.1
    assert errors["rmse_energy_mev_per_atom"] < 0.01


def test_nothing_is_compiled_after_the_first_step():
    """The energy function is traced in the first step and the first validation only."""
    traces = []

    def counted(params, system, graph):
        traces.append(system.positions.shape)
        return energy(params, system, graph)

    held_out = Batches(examples()[9:], 2, shuffle=False)
    algorithm = force_matching(
        counted, LOSS, optax.adam(1e-3), validation=held_out, validate_every=2
    )
    batches = Batches(examples()[:9], 4)
    state = algorithm.init(params_of(START))
    counts = []
    for step in range(1, 9):
        state, _ = algorithm.step(state, batches(step))
        counts.append(len(traces))
    assert counts[1:] == [counts[1]] * 7


def test_half_of_the_labels_missing_leaves_the_others_untouched():
    """Gradients with and without structures whose labels all have weight 0 agree."""
    data = labelled(12)[:4]
    silent = [(system, labels._replace(energy=1e3)) for system, labels in data]
    examples = make_examples([*data, *silent], CUTOFF, weights=[1.0] * 4 + [0.0] * 4)
    states = []
    for batches in (Batches(examples, 8), Batches(make_examples(data, CUTOFF), 4)):
        algorithm = small(optax.sgd(0.1))
        states.append(algorithm.step(algorithm.init(params_of(START)), batches(1))[0])
    for name in TRUE:
        np.testing.assert_allclose(states[0].params[name], states[1].params[name], rtol=1e-13)


def test_average_and_clipping_follow_their_formulas():
    """Debiased: sum of d^(n-k) p_k over sum of d^(n-k); clipped steps have length rate·norm."""
    algorithm = small(optax.sgd(1e-3), average_decay=0.7, max_gradient_norm=1e-3)
    batches = Batches(examples(), 4)
    state, path = algorithm.init(params_of(START)), [params_of(START)]
    for step in range(1, 5):
        state, metrics = algorithm.step(state, batches(step))
        assert metrics["gradient_norm"] > 1e-3
        path.append(state.params)
        move = jax.tree.map(jnp.subtract, path[-1], path[-2])
        assert float(optax.tree.norm(move)) == pytest.approx(1e-6, rel=1e-6)
    weights = 0.7 ** np.arange(3.0, -1.0, -1.0)
    for name in TRUE:
        expected = weights @ np.array([float(p[name]) for p in path[1:]]) / weights.sum()
        np.testing.assert_allclose(state.best[name], expected, rtol=1e-13)


def test_validation_keeps_the_best_average_and_ends_training():
    """A rate that overshoots ever further: the best validation comes early, then training stops."""
    held_out = Batches(examples()[8:], 4, shuffle=False)
    matching = small(
        optax.sgd(lambda step: 1e-3 * 1.5**step),
        validation=held_out,
        validate_every=2,
        average_decay=0.0,
    )
    algorithm = watch(matching, "validation/loss")
    losses, seen = [], []

    def note(step, state, metrics):
        if "validation/loss" in metrics:
            losses.append(metrics["validation/loss"])
            seen.append(state.params)
        assert ("validation/loss" in metrics) == (step % 2 == 0)

    state = train(
        algorithm,
        params_of(START),
        200,
        batches=Batches(examples()[:8], 4),
        callbacks=[stop_when_stale(3), note],
        quiet=True,
    )
    best = int(np.nanargmin(losses))
    assert len(losses) == best + 4 < 100
    assert float(state.inner.best_loss) == losses[best]
    for name in TRUE:
        np.testing.assert_allclose(state.inner.best[name], seen[best][name], rtol=1e-14)
    errors = evaluate_labels(energy, state.inner.best, held_out)
    assert set(errors) == {
        f"{kind}_{label}"
        for kind in ("mae", "rmse")
        for label in ("energy_mev_per_atom", "forces_mev_per_angstrom", "stress_gpa")
    }


def test_an_interrupted_training_resumes_to_the_same_bytes(tmp_path):
    """In mid-epoch, with a schedule, averaging, validation and the watch of early stopping."""
    for name, lengths in (("whole", [11]), ("parts", [4, 9, 11])):
        for n_steps in lengths:
            matching = small(
                optax.adam(optax.cosine_decay_schedule(0.02, 11)),
                validation=Batches(examples()[8:], 4),
                validate_every=3,
                max_gradient_norm=1.0,
            )
            state = train(
                watch(matching, "validation/loss"),
                params_of(START),
                n_steps,
                batches=Batches(examples()[:8], 3, seed=5),
                directory=tmp_path / name,
                quiet=True,
            )
        assert int(state.inner.n_steps) == 11
    for name in ("metrics.jsonl", "checkpoints/step-000000000011.safetensors"):
        contents = [(tmp_path / run / name).read_bytes() for run in ("whole", "parts")]
        assert contents[0] == contents[1]
    assert "validation/loss" in read_metrics(tmp_path / "whole" / "metrics.jsonl")[8]


def test_two_data_sets_share_an_optimiser_in_a_routine():
    """Alternating on one state of Adam is Adam on the batches in turn."""
    first, second = (Batches(part, 6) for part in (examples()[:6], examples()[6:]))
    routine = alternate(a=small(), b=small(), shared="optimizer")
    state = train(
        routine,
        params_of(START),
        6,
        batches=lambda step: {"a": first(1), "b": second(1)},
        quiet=True,
    )
    plain = train(
        small(),
        params_of(START),
        6,
        batches=lambda step: (first if step % 2 else second)(1),
        quiet=True,
    )
    for name in TRUE:
        np.testing.assert_array_equal(state.params[name], plain.params[name])


def test_charges_are_learned_by_their_own_function():
    """Charges proportional to the number of neighbors, less their mean, one number learned."""

    def charges(params, system, graph):
        ones = jnp.where(graph.mask, 1.0, 0.0)
        count = jax.ops.segment_sum(ones, graph.receivers, system.n_atoms)
        return params["per_neighbor"] * (count - 20.0) * system.mask

    data = []
    for system, labels in labelled(12)[:4]:
        true = charges({"per_neighbor": 0.01}, system, host_graph(system, CUTOFF))
        data.append((system, labels._replace(charges=np.asarray(true))))
    loss = MatchingLoss(energy=0.0, forces=0.0, stress=0.0, charges=1.0)
    algorithm = force_matching(energy, loss, optax.lbfgs(), charges_fn=charges, average_decay=0.0)
    params = params_of(START | {"per_neighbor": 0.0})
    batches = Batches(make_examples(data, CUTOFF), 4)
    state = train(algorithm, params, 8, batches=batches, quiet=True)
    np.testing.assert_allclose(state.best["per_neighbor"], 0.01, rtol=1e-9)
    errors = evaluate_labels(energy, state.best, batches, charges_fn=charges)
    assert errors["rmse_charges_e"] < 1e-9
    assert "rmse_charges_e" not in evaluate_labels(energy, state.best, batches)
    with pytest.raises(ValueError, match="give `charges_fn`"):
        force_matching(energy, loss, optax.adam(1e-2))


@pytest.mark.parametrize("kind", ["cell", "all atoms"])
def test_a_potential_that_sees_more_than_edges_is_told_apart(kind):
    """It would be silently wrong in joined structures, and is right in separate ones."""

    def sees_more(params, system, graph):
        extra = jnp.linalg.det(system.cell)
        if kind == "all atoms":
            centre = jnp.sum(jnp.where(system.mask[:, None], system.positions, 0.0), axis=0)
            extra = jnp.sum((system.positions - centre[None]) ** 2)
        return energy(params, system, graph) + 1e-2 * extra * system.mask

    algorithm = force_matching(sees_more, LOSS, optax.adam(1e-2))
    state = algorithm.init(params_of(START))
    with pytest.raises(ValueError, match=r"separate=True"):
        algorithm.step(state, Batches(examples(), 4)(1))
    _, metrics = algorithm.step(state, Batches(examples(), 4, separate=True)(1))
    assert np.isfinite(metrics["loss"])


def test_a_forgotten_label_ends_the_first_step():
    algorithm = force_matching(energy, MatchingLoss(energy=1.0, forces=1.0), optax.adam(1e-2))
    with pytest.raises(ValueError, match=r"labels \['stress'\] that the loss does not use"):
        algorithm.step(algorithm.init(params_of(START)), Batches(examples(), 4)(1))


def test_settings_are_checked():
    for options, match in (
        ({"average_decay": 1.0}, r"`average_decay` must lie in \[0, 1\), got 1.0"),
        ({"max_gradient_norm": 0.0}, "`max_gradient_norm` must be positive, got 0.0"),
        ({"validate_every": 0}, "`validate_every` must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=match):
            small(**options)
