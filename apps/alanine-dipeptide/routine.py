"""Three ways to the same model: by forces, by relative entropy, and by both."""

from pathlib import Path
from typing import Any

import alanine
import jax
import optax

from mosaicmd.difftre import NaturalGradient, dynamics_sampler, relative_entropy
from mosaicmd.kernel.force_matching import force_matching
from mosaicmd.kernel.label_errors import MatchingLoss
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.routines import then
from mosaicmd.kernel.training import Algorithm, averaged_params, tail_average, train
from mosaicmd.kernel.trajectory import StatePoint


def learn(
    settings: alanine.AlanineConfig, potential: Potential, reference: alanine.Reference, out: Path
) -> dict[str, Any]:
    """Parameters of all models; the same call again resumes.

    ``prior`` has learned nothing; ``matched`` is where ``combined`` has come from.
    """
    matching, entropy = settings.matching, settings.entropy
    start = potential.init(jax.random.key(settings.seed))

    rate = optax.cosine_decay_schedule(matching.learning_rate, matching.n_steps)
    match = force_matching(potential.energy, MatchingLoss(forces=1.0), optax.adam(rate))
    both = then(
        matching=(match, matching.n_steps),
        refining=(by_entropy(settings, potential, reference), entropy.n_updates),
    )
    state = train(
        both,
        start,
        matching.n_steps + entropy.n_updates,
        batches=alanine.labelled(settings, reference),
        directory=out / "combined",
        every=10,
        description="forces, then relative entropy",
    )
    combined = averaged_params(state.states["refining"])
    matched = state.states["matching"].best

    alone = train(
        by_entropy(settings, potential, reference),
        start,
        entropy.n_updates_alone,
        directory=out / "entropy",
        description="relative entropy",
        show="relative_entropy",
    )
    found = {"prior": start, "matched": matched, "entropy": averaged_params(alone)}
    return found | {"combined": combined}


def by_entropy(
    settings: alanine.AlanineConfig, potential: Potential, reference: alanine.Reference
) -> Algorithm:
    """Relative entropy of the reference, from replicas that start in its frames."""
    run, kT = settings.entropy, settings.kT
    sampler = dynamics_sampler(
        alanine.simulation(run, potential, kT),
        alanine.starts(settings, reference, run.replicas, seed=0),
        StatePoint(kT),
        n_equilibration=run.every * run.n_equilibration,
        n_production=run.every * run.n_frames,
        key=jax.random.key(settings.seed),
    )
    step = NaturalGradient(gain=run.gain, max_divergence=run.max_divergence, ridge=run.ridge)
    frames = alanine.frames(reference.positions[:: settings.every], kT)
    options = {"reuse_fraction": 1.0, "frames_at_once": 500}  # no noise is learned twice
    minimise = relative_entropy(potential.energy, None, sampler, frames, step, **options)
    return tail_average(minimise, run.average_last)
