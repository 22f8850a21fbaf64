"""Routines of descents in parabolas, where every iterate is known."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mosaicmd.kernel.descent import descent
from mosaicmd.kernel.metrics import read_metrics
from mosaicmd.kernel.routines import alternate, then
from mosaicmd.kernel.training import Algorithm, tail_average, train


@functools.cache  # each is compiled once
def parabola(centre, *, rate=0.25, momentum=None):
    """Descent on ``(x - centre - batch)²/2``: ``x - centre`` shrinks by ``1 - rate``."""

    def loss(params, batch):
        goal = centre if batch is None else centre + batch
        return 0.5 * jnp.sum((params["x"] - goal) ** 2)

    return descent(loss, optax.sgd(rate, momentum=momentum))


def start(x=1.0):
    return {"x": jnp.array([x, -2.0 * x])}


def noise(step):
    return float(np.random.default_rng(step).normal())


def run(algorithm, n_steps, params=None):
    """States after every step, without a loop around them."""
    state = algorithm.init(start() if params is None else params)
    states = []
    for _ in range(n_steps):
        state, _ = algorithm.step(state, None)
        states.append(state)
    return states


def xs(states):
    return [float(state.params["x"][0]) for state in states]


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


class PlainState(NamedTuple):
    params: dict
    adopted: int


def observer(adopt=True):
    """Changes nothing; reports its batch, and how often parameters came from outside."""

    def step(state, batch):
        value = -1.0 if batch is None else batch
        return state, {"batch": value, "adopted": state.adopted}

    def adopted(state, params):
        return PlainState(params, state.adopted + 1)

    init = lambda params: PlainState(params, 0)  # noqa: E731
    return Algorithm(init, step, adopted) if adopt else Algorithm(init, step)


# --- alternate ---------------------------------------------------------------------------


def test_alternating_descents_have_the_iterates_of_the_closed_form():
    """To 0 by a half, then to 2 by a quarter twice: x -> x/2, x -> 2 + (x - 2) 3/4."""
    a, b = parabola(0.0, rate=0.5), parabola(2.0, rate=0.25)
    found = xs(run(alternate(a, b, counts=(1, 2)), 6))
    expected, x = [], 1.0
    for _ in range(2):
        for centre, rate in ((0.0, 0.5), (2.0, 0.25), (2.0, 0.25)):
            x = centre + (x - centre) * (1.0 - rate)
            expected.append(x)
    assert found == expected  # binary fractions: exact


@pytest.mark.parametrize("rate", [0.5, 0.05])
def test_alternating_losses_find_their_compromise(rate):
    """Losses x²/2 and 3 (x - 2)²/2 have their minimum at 3/2, and the cycle is at

    ``x (1 - A B) = 2 (1 - B)`` with ``A = 1 - rate/2`` and ``B = 1 - 3 rate/2``.
    """
    a, b = parabola(0.0, rate=0.5 * rate), parabola(2.0, rate=1.5 * rate)
    x = xs(run(alternate(a, b), 800))[-1]
    shrink_a, shrink_b = 1.0 - 0.5 * rate, 1.0 - 1.5 * rate
    np.testing.assert_allclose(x, 2.0 * (1.0 - shrink_b) / (1.0 - shrink_a * shrink_b), rtol=1e-12)
    assert abs(x - 1.5) < rate


def test_one_algorithm_alone_is_not_disturbed():
    heavy = parabola(2.0, momentum=0.5)
    alone = run(heavy, 5)
    for routine in (alternate(heavy), alternate(a=heavy, counts=[3]), then((heavy, None))):
        assert xs(run(routine, 5)) == xs(alone)


def test_momentum_is_kept_or_shared_as_computed_by_hand():
    """Heavy ball, rate 1/4, momentum 1/2, on x²/2 and (x - 2)²/2 in turn from x = 1.

    Separate: m_a = 1, x = 3/4; m_b = -5/4, x = 17/16; m_a = 17/16 + 1/2, x = 43/64.
    Shared: m = 1, x = 3/4; m = -5/4 + 1/2, x = 15/16; m = 15/16 - 3/8, x = 51/64.
    """
    a, b = parabola(0.0, momentum=0.5), parabola(2.0, momentum=0.5)
    assert xs(run(alternate(a, b), 3)) == [3 / 4, 17 / 16, 43 / 64]
    assert xs(run(alternate(a, b, shared="optimizer"), 3)) == [3 / 4, 15 / 16, 51 / 64]


def test_an_optimiser_is_shared_by_some_and_through_nested_states():
    """`c` keeps out, and the share of `b` lies in a wrapped state; by hand as above.

    After a (m = 1) and c (m_c = -5/4, x = 17/16): m_b = -15/16 + 1/2, x = 75/64.
    """
    a, b = parabola(0.0, momentum=0.5), parabola(2.0, momentum=0.5)
    shared = {"a": "optimizer", "b": "inner.optimizer"}
    states = run(alternate(a=a, c=b, b=tail_average(b, 2), shared=shared), 4)
    m_c, m, x = -5 / 4, -15 / 16 + 1 / 2, 75 / 64
    assert xs(states)[:3] == [3 / 4, 17 / 16, x]
    m = x + 0.5 * m
    assert xs(states)[3] == x - 0.25 * m
    last = states[3].states
    assert float(last["c"].optimizer[0].trace["x"][0]) == m_c
    assert float(last["b"].inner.optimizer[0].trace["x"][0]) == m


def test_equal_losses_that_share_all_are_one():
    heavy = parabola(2.0, momentum=0.5)
    alone = xs(run(heavy, 7))
    assert xs(run(alternate(heavy, heavy, counts=(2, 1), shared="optimizer"), 7)) == alone
    assert xs(run(then((heavy, 3), (heavy, 4), shared="optimizer"), 7)) == alone
    assert xs(run(then((heavy, 3), (heavy, 4)), 7)) != alone


def test_parameters_are_adopted_once_per_turn():
    routine = alternate(watcher=observer(), fall=parabola(0.0, rate=0.5), counts=(2, 1))
    states = run(routine, 9)
    assert [state.states["watcher"].adopted for state in states] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert xs(states) == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


@pytest.mark.parametrize("n_steps", [0, 1, 2, 3])
def test_a_routine_adopts_wherever_it_stands(n_steps):
    """Two steps to 0 by halves, two by quarters; the parameters become 8 after `n_steps`."""
    halves, quarters = parabola(0.0, rate=0.5), parabola(0.0, rate=0.75)
    factors = [0.5, 0.5, 0.25, 0.25]
    for routine in (
        alternate(halves, quarters, counts=(2, 2)),
        then((halves, 2), (quarters, 2)),
        alternate(a=tail_average(alternate(halves), 2), b=quarters, counts=(2, 2)),
    ):
        state = routine.init(start())
        for _ in range(n_steps):
            state, _ = routine.step(state, None)
        state = routine.adopt(state, start(8.0))
        assert float(state.params["x"][0]) == 8.0
        state, _ = routine.step(state, None)
        assert float(state.params["x"][0]) == 8.0 * factors[n_steps]


# --- then ----------------------------------------------------------------------------------


def test_then_is_running_both_by_hand_bit_for_bit():
    first, second = parabola(0.3, momentum=0.9), parabola(-0.7, rate=0.1, momentum=0.7)
    routine = then(first=(first, 3), second=(second, 4))
    whole = train(routine, start(), 7, batches=noise, quiet=True)
    by_hand = train(first, start(), 3, batches=noise, quiet=True)
    assert_same_bits(whole.states["first"], by_hand)
    later = lambda step: noise(step + 3)  # noqa: E731
    by_hand = train(second, by_hand.params, 4, batches=later, quiet=True)
    assert_same_bits(whole.states["second"], by_hand)
    assert_same_bits(whole.params, by_hand.params)


def test_the_last_stage_may_have_no_end_and_others_do():
    a = parabola(0.0, rate=0.5)
    assert xs(run(then((a, 1), (a, None)), 5))[-1] == 0.5**5
    with pytest.raises(ValueError, match="all 2 stages are over after 3 steps"):
        run(then((a, 1), (a, 2)), 4)


def test_routines_nest():
    """Fall by halves twice; then, over and over, rise to 2 by a half, and fall by quarters."""
    fall, rise = parabola(0.0, rate=0.5), parabola(2.0, rate=0.5)
    inner = then(quick=(parabola(0.0, rate=0.75), 1), slow=(fall, None))
    routine = then(begin=(fall, 2), main=(alternate(rise=rise, fall=inner), 6))
    found = xs(run(routine, 8))
    x, expected = 1.0, []
    for centre, rate in (
        [(0, 0.5)] * 2
        + [(2, 0.5), (0, 0.75), (2, 0.5), (0, 0.5)]
        + [
            (2, 0.5),
            (0, 0.5),
        ]
    ):
        x = centre + (x - centre) * (1.0 - rate)
        expected.append(x)
    assert found == expected
    _, metrics = routine.step(run(routine, 3)[-1], None)
    assert list(metrics) == ["main/fall/quick/loss"]


# --- batches and metrics -------------------------------------------------------------------


def test_batches_are_addressed_by_name_and_counted_by_the_routine(tmp_path):
    read = []

    def draw(step):
        read.append(step)
        return 100.0 + step

    def batches(step):
        return {"a": lambda: draw(step), "b": {"c": 200.0 + step}}

    routine = alternate(a=observer(), b=alternate(c=observer(), d=observer()))
    train(routine, start(), 6, batches=batches, directory=tmp_path, quiet=True)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    seen = [value for line in lines for name, value in line.items() if name.endswith("batch")]
    assert seen == [101.0, 202.0, 103.0, -1.0, 105.0, 206.0]
    assert read == [1, 3, 5]  # called only where it was used
    assert [sorted(set(line) - {"step"})[0] for line in lines[:4]] == [
        *("a/adopted", "b/c/adopted", "a/adopted", "b/d/adopted")
    ]


def test_batches_without_names_reach_everyone():
    routine = alternate(("a", observer()), b=observer())
    state = routine.init(start())
    state, metrics = routine.step(state, 7.0)
    assert metrics["a/batch"] == 7.0
    _, metrics = routine.step(state, {"energies": 1.0})
    assert metrics["b/batch"] == {"energies": 1.0}


def test_a_batch_for_nobody_is_an_error():
    routine = alternate(a=observer(), b=observer())
    with pytest.raises(ValueError, match=r"holds \['bb'\], but the algorithms are \['a', 'b'\]"):
        routine.step(routine.init(start()), {"a": 1.0, "bb": 2.0})


# --- resume --------------------------------------------------------------------------------


def nested():
    a, b = parabola(0.3, momentum=0.9), parabola(-0.7, rate=0.1, momentum=0.7)
    both = alternate(a=a, b=b, counts=(2, 1), shared="optimizer")
    return then(
        begin=(a, 2),
        main=(alternate(both=tail_average(both, 2), plain=observer()), 7),
        end=(b, None),
    )


def content(folder, step):
    names = ("metrics.jsonl", f"checkpoints/step-{step:012d}.safetensors")
    return [(folder / name).read_bytes() for name in names]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(nested(), start(), 12, batches=noise, directory=folder, quiet=True)
    return content(folder, 12)


@pytest.mark.parametrize("interrupted", range(1, 12))
def test_a_routine_interrupted_at_any_step_ends_in_the_same_bytes(
    tmp_path, undisturbed, interrupted
):
    for n_steps in (interrupted, 12):
        train(nested(), start(), n_steps, batches=noise, directory=tmp_path, every=5, quiet=True)
    assert content(tmp_path, 12) == undisturbed


def test_a_routine_interrupted_at_every_step_ends_in_the_same_bytes(tmp_path, undisturbed):
    for n_steps in range(1, 13):
        train(nested(), start(), n_steps, batches=noise, directory=tmp_path, quiet=True)
    assert content(tmp_path, 12) == undisturbed


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(1, 0), (1, 2.0), (1, -1), (1, None)])
def test_counts_are_checked(counts):
    a = parabola(0.0)
    with pytest.raises(ValueError, match="steps of `1` must be a whole number from 1"):
        alternate(a, a, counts=counts)
    if counts[1] is not None:
        with pytest.raises(ValueError, match="steps of `1` must be a whole number from 1"):
            then((a, 1), (a, counts[1]))
    with pytest.raises(ValueError, match="steps of `x`"):
        then(x=(a, None), y=(a, 1))
    with pytest.raises(ValueError, match="`counts` has 3 entries for 2 algorithms"):
        alternate(a, a, counts=(1, 1, 1))


def test_names_are_checked():
    a = parabola(0.0)
    with pytest.raises(ValueError, match="share a name"):
        alternate(("a", a), a=a)
    with pytest.raises(ValueError, match="share a name"):
        then((a, 1), **{"0": (a, 1)})
    with pytest.raises(ValueError, match=r"hold `/` or `\.`"):
        alternate(("a/b", a))
    for empty in (alternate, then):
        with pytest.raises(ValueError, match="at least one algorithm"):
            empty()
    with pytest.raises(ValueError, match="pairs of algorithm and number of steps"):
        then(a, (a, 1))


def test_states_without_params_are_named():
    bare = Algorithm(lambda params: {"x": 1.0}, lambda state, batch: (state, {}))
    with pytest.raises(ValueError, match="state of `bare` has no field `params`"):
        alternate(bare=bare).init(start())

    class Holder:
        params = None

    with pytest.raises(ValueError, match="`bare` is no named tuple: give its algorithm an `adopt`"):
        then(bare=(bare._replace(init=lambda params: Holder()), 1)).init(start())


def test_what_cannot_be_shared_is_named():
    a, b = parabola(0.0), parabola(0.0, momentum=0.5)
    with pytest.raises(ValueError, match=r"`1` cannot share `optimizer` with `0`"):
        alternate(a, b, shared="optimizer").init(start())
    with pytest.raises(ValueError, match="`1` has no field `optimizer` to share"):
        then((a, 1), (observer(), 1), shared="optimizer").init(start())
    for wrong in ({"0": "optimizer"}, {"0": "optimizer", "2": "optimizer"}):
        with pytest.raises(ValueError, match="`shared` needs two or more"):
            alternate(a, b, shared=wrong)
