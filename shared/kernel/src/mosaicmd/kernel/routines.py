"""Routines: algorithms that take turns or follow each other, as one `Algorithm`.

Parameters are handed on; everything else in a state (optimiser, samples) stays with its
algorithm, unless it is ``shared``. Routines are algorithms, so they nest, and under
:func:`mosaicmd.kernel.training.train` they resume exactly, wherever they were interrupted::

    both = alternate(labels=force_matching, water=difftre, counts=(10, 1))
    routine = then(pretrain=(force_matching, 500), refine=(both, 1100))
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mosaicmd.kernel.training import Algorithm, replace_params

Array = jax.Array
Params = Any


class RoutineState(NamedTuple):
    """State of :func:`alternate` and :func:`then`."""

    params: Params  # of the algorithm that ran last
    states: dict[str, Any]  # of every algorithm, by name
    n_steps: Array  # [], int32, of the routine so far


def alternate(
    *algorithms: Algorithm | tuple[str, Algorithm],
    counts: Sequence[int] | None = None,
    shared: str | Mapping[str, str] | None = None,
    **named: Algorithm,
) -> Algorithm:
    """Steps of each algorithm in turn, over and over.

    An algorithm gets the parameters through its ``adopt`` when its turn begins. Metrics are
    prefixed by its name: ``water/loss``. A batch that is a mapping with names of algorithms
    as keys is addressed: each gets its own entry, or ``None``, and an entry that is a
    function is called (without arguments) only when it is used. Any other batch is passed
    on as it is. The ``batches`` of ``train`` count the steps of the whole routine.

    Args:
        algorithms: named ``"0"``, ``"1"``, ... by position, or pairs of name and algorithm.
        counts: steps per turn, in the order of the algorithms; one each if ``None``.
        shared: field that the states of all algorithms share, such as ``"optimizer"``, or
            the field by algorithm, for those that share it; dots lead into nested states
            (``"inner.update"``). Whoever steps passes it on to the others, so that several
            losses drive one optax state; by default each algorithm keeps its own.
        named: further algorithms, by name.

    Raises:
        ValueError: for no algorithms, for names that occur twice or hold ``/`` or ``.``,
            for counts that do not fit; and from ``init`` for a state without ``params`` or
            without the shared field.
    """
    pairs = [
        (str(i), one) if isinstance(one, Algorithm) else one for i, one in enumerate(algorithms)
    ]
    members = _by_name([*pairs, *named.items()])
    counts = [1] * len(members) if counts is None else list(counts)
    if len(counts) != len(members):
        raise ValueError(f"`counts` has {len(counts)} entries for {len(members)} algorithms")
    ends = _ends(members, counts)

    def turn(n: int) -> int:
        return bisect.bisect(ends, n % ends[-1])

    def enter(algorithm: Algorithm, state: Any, params: Params) -> Any:
        return algorithm.adopt(state, params)

    return _routine(members, turn, enter, shared)


def then(
    *stages: tuple[Algorithm, int | None],
    shared: str | Mapping[str, str] | None = None,
    **named: tuple[Algorithm, int | None],
) -> Algorithm:
    """One algorithm after the other, each for a number of steps.

    A stage is initialised with the parameters that the one before has found, so the result
    is that of running them by hand. Metrics and batches are as in :func:`alternate`.

    Args:
        stages: algorithm and number of steps; ``None`` for a last one that has no end. They
            are named ``"0"``, ``"1"``, ... by position.
        shared: as in :func:`alternate`: a field that a stage takes over, not from ``init``.
        named: further stages, by name.

    Raises:
        ValueError: as :func:`alternate`; and from ``step`` after the end of the last stage.
    """
    members = _by_name([*((str(i), one) for i, one in enumerate(stages)), *named.items()])
    if wrong := [name for name, one in members.items() if isinstance(one, Algorithm)]:
        raise ValueError(f"stages are pairs of algorithm and number of steps; {wrong} are not")
    algorithms = {name: algorithm for name, (algorithm, _) in members.items()}
    counts = [n_steps for _, n_steps in members.values()]
    endless = counts[-1] is None
    ends = _ends(algorithms, counts[: len(counts) - endless]) + [math.inf] * endless

    def stage(n: int) -> int:
        if n >= ends[-1]:
            raise ValueError(
                f"all {len(ends)} stages are over after {ends[-1]} steps; run no more than "
                "these, or give `None` as the number of steps of the last one"
            )
        return bisect.bisect(ends, n)

    def enter(algorithm: Algorithm, state: Any, params: Params) -> Any:
        del state
        return algorithm.init(params)

    return _routine(algorithms, stage, enter, shared)


def _routine(
    members: Mapping[str, Algorithm],
    active: Callable[[int], int],
    enter: Callable[[Algorithm, Any, Params], Any],
    shared: str | Mapping[str, str] | None,
) -> Algorithm:
    """Before step ``n`` counts ``active(n)`` says who runs, ``enter`` is called on a change."""
    names = list(members)
    fields = dict.fromkeys(names, shared) if isinstance(shared, str) else dict(shared or {})
    if shared and (len(fields) < 2 or not fields.keys() <= members.keys()):
        raise ValueError(f"`shared` needs two or more of the algorithms {names}, got {shared!r}")

    def passed_on(states: dict[str, Any], giver: str) -> dict[str, Any]:
        """The states after ``giver`` has told the others what they share."""
        if giver not in fields:
            return states
        value = _get(states[giver], fields[giver])
        return states | {name: _put(states[name], path, value) for name, path in fields.items()}

    def begins(n: int) -> bool:
        return n > 0 and active(n) != active(n - 1)

    def init(params: Params) -> RoutineState:
        states = {name: algorithm.init(params) for name, algorithm in members.items()}
        for name, state in states.items():
            _check_state(name, members[name], state)
        kinds = {name: _kind(name, states[name], path) for name, path in fields.items()}
        for name, kind in kinds.items():
            if kind != kinds[next(iter(kinds))]:
                raise ValueError(
                    f"`{name}` cannot share `{fields[name]}` with `{next(iter(kinds))}`: their "
                    "structures, shapes or dtypes differ; give both the same optimiser"
                )
        first = next(iter(fields), names[0])
        return RoutineState(params, passed_on(states, first), jnp.zeros((), jnp.int32))

    def step(state: RoutineState, batch: Any = None) -> tuple[RoutineState, dict[str, float]]:
        n = int(state.n_steps)
        name = names[active(n)]
        inner = state.states[name]
        if begins(n):
            entered = enter(members[name], inner, state.params)
            path = fields.get(name)
            inner = entered if path is None else _put(entered, path, _get(inner, path))
        inner, metrics = members[name].step(inner, _batch_of(name, names, batch))
        states = passed_on(state.states | {name: inner}, name)
        metrics = {f"{name}/{key}": value for key, value in metrics.items()}
        return RoutineState(inner.params, states, state.n_steps + 1), metrics

    def adopt(state: RoutineState, params: Params) -> RoutineState:
        n, states = int(state.n_steps), state.states
        if not begins(n):  # else they are handed on with the next step
            name = names[active(n)]
            states = states | {name: members[name].adopt(states[name], params)}
        return RoutineState(params, states, state.n_steps)

    return Algorithm(init, step, adopt)


def _by_name(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if not names:
        raise ValueError("a routine needs at least one algorithm")
    if len(set(names)) < len(names):
        raise ValueError(f"algorithms share a name: {names}")
    if wrong := [name for name in names if not name or set(name) & set("/.")]:
        raise ValueError(f"names of algorithms must not be empty or hold `/` or `.`, got {wrong}")
    return dict(pairs)


def _ends(names: Iterable[str], counts: Sequence[int | None]) -> list[float]:
    """After how many steps each is over, counted from the start of the first."""
    ends = []
    for name, count in zip(names, counts, strict=False):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"steps of `{name}` must be a whole number from 1, got {count!r}")
        ends.append(count + (ends[-1] if ends else 0))
    return ends


def _batch_of(name: str, names: Sequence[str], batch: Any) -> Any:
    if not isinstance(batch, Mapping) or not batch.keys() & set(names):
        return batch
    if unknown := batch.keys() - set(names):
        raise ValueError(
            f"a batch addressed by name holds {sorted(map(str, unknown))}, but the algorithms "
            f"are {list(names)}"
        )
    entry = batch.get(name)
    return entry() if callable(entry) else entry


def _check_state(name: str, algorithm: Algorithm, state: Any) -> None:
    if not hasattr(state, "params"):
        raise ValueError(f"the state of `{name}` has no field `params` to hand on")
    if algorithm.adopt is replace_params and not hasattr(state, "_replace"):
        raise ValueError(f"the state of `{name}` is no named tuple: give its algorithm an `adopt`")


def _kind(name: str, state: Any, path: str) -> Any:
    try:
        value = _get(state, path)
    except (AttributeError, KeyError):
        raise ValueError(f"the state of `{name}` has no field `{path}` to share") from None
    leaves, structure = jax.tree.flatten(value)
    return structure, [(jnp.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves]


def _get(state: Any, path: str) -> Any:
    for name in path.split("."):
        state = state[name] if isinstance(state, Mapping) else getattr(state, name)
    return state


def _put(state: Any, path: str, value: Any) -> Any:
    head, _, rest = path.partition(".")
    value = _put(_get(state, head), rest, value) if rest else value
    return {**state, head: value} if isinstance(state, Mapping) else state._replace(**{head: value})
