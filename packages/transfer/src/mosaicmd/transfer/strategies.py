"""What a training on the target takes from the source: which parameters, and how far they move."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mosaicmd.kernel.adapters import adapted, low_rank_adapters, merge_adapters
from mosaicmd.kernel.potentials import EnergyFn, Params, Potential
from mosaicmd.kernel.pytrees import matching_leaves
from mosaicmd.transfer.rescaled import rescaled
from mosaicmd.transfer.scales import Scales

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a potential starts on a target, and how it is held to its source.

    Parts combine freely: a rescaled potential may keep its first layers, learn its readout
    anew and be pulled to the source elsewhere. The default copies everything and lets
    everything move. Patterns are of paths such as ``"layers/0/*"``, in which ``*`` matches
    anything; the path of a container stands for all that is in it.

    Attributes:
        scales: of length and energy, target over source; ``None``: both 1.
        reinitialise: parameters that start from random numbers.
        rates: factors of the learning rate by pattern, the first that matches; 0 freezes.
        pull: ``c`` of the term ``c/2 |theta - theta_source|²`` added to the loss, for
            parameters that were copied.
        adapters: matrices that learn by a change of low rank while all else stays
            (:mod:`mosaicmd.kernel.adapters`); ``()``: everything learns as it is.
        rank: of those changes, at most.
    """

    scales: Scales | None = None
    reinitialise: tuple[str, ...] = ()
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pull: float = 0.0
    adapters: tuple[str, ...] = ()
    rank: int = 4

    def __post_init__(self) -> None:
        if not self.pull >= 0.0:
            raise ValueError(f"`pull` must not be negative, got {self.pull}")
        if bad := {pattern: rate for pattern, rate in self.rates.items() if not rate >= 0.0}:
            raise ValueError(f"`rates` must not be negative, got {bad}")
        if self.rank < 1:
            raise ValueError(f"`rank` must be at least 1, got {self.rank}")
        if self.adapters and (self.reinitialise or self.rates or self.pull):
            raise ValueError(
                "`adapters` leave all parameters as they are: `reinitialise`, `rates` and `pull` "
                "have nothing to act on; give one or the other"
            )

    def record(self) -> dict[str, Any]:
        """As JSON, for ``save_model(..., training={"transfer": strategy.record()})``."""
        record = dataclasses.asdict(self)
        scales = None if self.scales is None else self.scales._asdict()
        return record | {"scales": scales, "rates": dict(self.rates)}


def start(
    strategy: Strategy,
    potential: Potential,
    params: Params,
    key: Array,
    *,
    species: Mapping[int, int] | None = None,
) -> tuple[Potential, Params]:
    """The potential for the target with the parameters it starts from.

    Args:
        strategy: what to take over.
        potential: of the source.
        params: its trained parameters.
        key: of random parameters.
        species: as in :func:`~mosaicmd.transfer.rescaled.rescaled`; ``None`` where the
            source knows the species of the target.

    Raises:
        ValueError: for a pattern that matches nothing.
    """
    target = potential
    if species is not None or strategy.scales is not None:
        length, energy = strategy.scales or Scales(1.0, 1.0)
        target = rescaled(potential, length=length, energy=energy, species=species)
    return target, copy_except(params, target.init(key), strategy.reinitialise)


class Learnable(NamedTuple):
    """What a training moves, and how that becomes a model."""

    energy: EnergyFn  # of the parameters to learn
    params: Params  # to start from
    merge: Callable[[Params], Params]  # what was learned -> parameters of the potential


def learnable(strategy: Strategy, potential: Potential, params: Params, key: Array) -> Learnable:
    """The function to train: of all parameters, or of adapters where the strategy has them.

    Args:
        strategy: see its ``adapters`` and ``rank``.
        potential: from :func:`start`.
        params: from :func:`start`.
        key: of the adapters, which change nothing at the start.

    Raises:
        ValueError: for a pattern that matches no matrix.
    """
    if not strategy.adapters:
        return Learnable(potential.energy, params, lambda learned: learned)
    adapters = low_rank_adapters(params, strategy.adapters, rank=strategy.rank, key=key)
    return Learnable(
        adapted(potential.energy, params),
        adapters,
        lambda learned: merge_adapters(params, learned),
    )


def copy_except(params: Params, fresh: Params, patterns: Sequence[str]) -> Params:
    """``params``, with those leaves of ``fresh`` whose path matches a pattern.

    Raises:
        ValueError: for a pattern that matches nothing.
    """
    chosen = matching_leaves(params, patterns)
    return jax.tree.map(
        lambda use, new, old: jnp.asarray(new, jnp.asarray(old).dtype) if use else old,
        chosen,
        fresh,
        params,
    )


def optimizer_of(
    strategy: Strategy, optimizer: optax.GradientTransformation, source: Params
) -> optax.GradientTransformation:
    """``optimizer`` with the rates and the pull of a strategy.

    Args:
        strategy: see its ``rates`` and ``pull``.
        optimizer: of the parameters, for example ``optax.adam(1e-3)``.
        source: parameters of the source, to which the pull leads, or the adapters that
            :func:`learnable` made. The pull is part of the gradient that ``optimizer``
            sees, as in a loss.

    Raises:
        ValueError: for a pattern that matches nothing, or rates that freeze everything.

    References:
        Li, Grandvalet & Davoine, ICML (2018), arXiv:1802.01483: the pull, there "L2-SP".
    """
    factors = _rates(strategy.rates, source)
    steps = [optimizer, _times(factors)]
    if strategy.pull > 0.0:
        copied = jax.tree.map(lambda new: not new, matching_leaves(source, strategy.reinitialise))
        steps.insert(0, pull_towards(source, strategy.pull, copied))
    return optax.chain(*steps)


def pull_towards(
    source: Params, strength: float, mask: Params | None = None
) -> optax.GradientTransformation:
    """Adds ``strength * (theta - source)`` to the gradient of every leaf that ``mask`` selects."""
    chosen = jax.tree.map(lambda _: True, source) if mask is None else mask

    def pulled(gradient: Params, params: Params | None) -> Params:
        if params is None:
            raise ValueError("`pull_towards` needs the parameters: call update(g, state, params)")
        return jax.tree.map(
            lambda use, g, p, s: g + strength * (p - s).astype(g.dtype) if use else g,
            chosen,
            gradient,
            params,
            source,
        )

    return optax.stateless(pulled)


def _rates(rates: Mapping[str, float], params: Params) -> Params:
    factors = jax.tree.map(lambda _: 1.0, params)
    for pattern, rate in reversed(list(rates.items())):  # the first that matches has the last word
        matches = matching_leaves(params, [pattern])
        factors = jax.tree.map(lambda use, old, new=rate: new if use else old, matches, factors)
    if not np.any(jax.tree.leaves(factors)):
        raise ValueError(f"`rates` {dict(rates)} freeze every parameter; leave some to train")
    return factors


def _times(factors: Params) -> optax.GradientTransformation:
    def slowed(changes: Params, params: Params | None) -> Params:
        del params
        return jax.tree.map(
            lambda factor, change: change if factor == 1.0 else factor * change, factors, changes
        )

    return optax.stateless(slowed)
