"""One training: a source model, or a trial on the target; jobs are plain data for workers."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple, cast

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import optax
from settings import SCRATCH, BudgetConfig, ModelConfig, StrategyConfig

from mosaicmd.gnn_models import scaled
from mosaicmd.kernel.batches import Batches, prefetch
from mosaicmd.kernel.data import Labels, read_systems
from mosaicmd.kernel.examples import Example, make_examples
from mosaicmd.kernel.force_matching import force_matching
from mosaicmd.kernel.label_errors import MatchingLoss, Sums, error_metrics, predict, sum_errors
from mosaicmd.kernel.model_files import load_model, save_model
from mosaicmd.kernel.potentials import Potential, build_potential
from mosaicmd.kernel.reference_energies import fit_reference_energies
from mosaicmd.kernel.slots import Batch
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.training import Algorithm, train
from mosaicmd.transfer import (
    Scales,
    Strategy,
    Trial,
    copy_except,
    fit_scales,
    learnable,
    nested_subsets,
    optimizer_of,
    start,
)

Data = list[tuple[System, Labels]]
FITTED = 24  # structures that scales are fitted to, at most
VALIDATIONS = 12  # of one training


class Job(NamedTuple):
    """What a worker needs to know of one training."""

    train: str  # file
    test: str
    folder: str  # where the model goes
    model: dict[str, Any]
    settings: dict[str, Any]
    species: tuple[int, int]  # source, target
    tables: tuple[float, float]  # ratios of length and energy
    force_scale: float  # eV/Å, of the random start; the same for all
    seed: int
    trial: Trial | None = None  # on the target; None trains the source
    strategy: dict[str, Any] | None = None
    source: str = ""  # model directory
    groups: tuple[str, ...] = ()  # learn from these alone


class HeldOut:
    """Validation structures of the trial at work, for a compiled algorithm that outlives it."""

    batches: Batches

    @property
    def n_examples(self) -> int:
        return self.batches.n_examples

    def epoch(self) -> Any:
        return self.batches.epoch()


class Programs(NamedTuple):
    """What trials share that differ in nothing but data, seed and learning rate."""

    potential: Potential
    strategy: Strategy
    weights: Any  # of the source; None from scratch
    algorithm: Algorithm
    held_out: HeldOut
    sums: Any  # (params, batch) -> errors


class RateState(NamedTuple):
    """The learning rate, a number in the state and so none in the program."""

    rate: jax.Array


def run(job: Job) -> dict[str, Any]:
    """Train, test and keep a model; metrics by name, errors of each group of structures too."""
    settings = BudgetConfig(**job.settings)
    data, test = read(job.train), read(job.test)
    if job.trial is None:
        chosen, rate, steps = data, settings.source_rate, settings.source_steps
    else:
        chosen = [data[i] for i in subset(job)]
        rate, steps = job.trial.rate, settings.steps
    learning, validating = divided(chosen, settings.validation)
    references, _ = fit_reference_energies(chosen)
    scales = scales_of(job, learning)
    programs = compiled(kind_of(job), scales)
    examples, held_out, tested = (
        make_examples(
            part, programs.potential.cutoff, reference_energies=references, dtype=np.float32
        )
        for part in (learning, validating, test)
    )
    size = settings.batch_size
    like = shapes(job.train, programs.potential.cutoff, size)
    batches = Batches(examples, size, seed=job.seed, like=like)
    programs.held_out.batches = Batches(held_out, size, shuffle=False, like=like)
    key = jax.random.key(job.seed)
    if programs.weights is None:
        params, merge = jax.tree.map(jnp.float32, programs.potential.init(key)), None
    else:
        fresh = programs.potential.init(key)
        params = copy_except(programs.weights, fresh, programs.strategy.reinitialise)
        first = learnable(programs.strategy, programs.potential, params, key)
        params, merge = first.params, first.merge
    algorithm = with_rate(programs.algorithm, rate)
    state = train(algorithm, params, steps, batches=prefetch(batches), quiet=True)
    params = state.best if merge is None else merge(state.best)
    Path(job.folder).parent.mkdir(parents=True, exist_ok=True)
    save_model(
        job.folder, programs.potential, params, overwrite=True, training=record(job, programs)
    )
    metrics: dict[str, Any] = {"validation/loss": float(state.best_loss)}
    metrics |= test_errors(programs, params, tested, groups_of(job.test), like)
    metrics |= {} if scales is None else {"length": scales.length, "energy": scales.energy}
    return metrics | {"epochs": steps / batches.steps_per_epoch, "n_learned": len(learning)}


@functools.lru_cache(maxsize=4)
def shapes(path: str, cutoff: float, size: int) -> Batches:
    """Batches of all structures: others are given their shapes, so that programs serve all."""
    return Batches(make_examples(read(path), cutoff, dtype=np.float32), size)


def subset(job: Job) -> list[int]:
    """Indices of the structures that a trial may see, for learning and validation."""
    assert job.trial is not None
    groups = groups_of(job.train)
    allowed = [i for i, group in enumerate(groups) if not job.groups or group in job.groups]
    labels = [groups[i] for i in allowed]
    size = min(job.trial.size, len(allowed))
    (order,) = nested_subsets(len(allowed), [size], job.trial.seed, groups=labels)
    return [allowed[i] for i in order]


def divided(chosen: Data, share: float) -> tuple[Data, Data]:
    """To learn from and to validate with: every n-th, so that larger subsets contain smaller."""
    every = max(2, round(1.0 / share))
    validating = [one for i, one in enumerate(chosen) if i % every == 1]
    learning = [one for i, one in enumerate(chosen) if i % every != 1]
    return learning, validating


def scales_of(job: Job, learning: Data) -> Scales | None:
    """Ratios of length and energy between target and source that a strategy asks for."""
    config = StrategyConfig(**(job.strategy or {}))
    if job.trial is None or job.trial.strategy == SCRATCH or config.scales is None:
        return None
    if config.scales == "tables":
        return Scales(*job.tables)
    source, weights = load_model(job.source)
    species = {job.species[1]: job.species[0]}
    fit = fit_scales(source, weights, learning[:FITTED], species=species, guess=job.tables[0])
    return fit.scales


def kind_of(job: Job) -> str:
    """What programs depend on, as a text to find them again by."""
    kept = {
        "model": job.model,
        "settings": job.settings,
        "species": job.species,
        "tables": job.tables,
        "force_scale": job.force_scale,
        "strategy": None if job.trial is None else [job.trial.strategy, job.strategy],
        "source": job.source,
    }
    return json.dumps(kept, sort_keys=True)


@functools.lru_cache(maxsize=8)
def compiled(kind: str, scales: Scales | None) -> Programs:
    """Potential and programs of all trials of a kind."""
    job = json.loads(kind)
    settings, model = BudgetConfig(**job["settings"]), ModelConfig(**job["model"])
    of_source = job["strategy"] is None
    steps = settings.source_steps if of_source else settings.steps
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, steps // 50), steps)
    optimizer = optax.chain(optax.adam(schedule), times_rate())
    strategy, weights = Strategy(), None
    if of_source or job["strategy"][0] == SCRATCH:
        label = job["species"][0 if of_source else 1]
        cutoff = model.cutoff * (1.0 if of_source else job["tables"][0])
        config = {**model.config, "species": [label], "cutoff": cutoff}
        potential = scaled(build_potential(model.architecture, config), job["force_scale"])
        energy = potential.energy
    else:
        chosen = StrategyConfig(**job["strategy"][1])
        parts = {name: getattr(chosen, name) for name in ("rates", "pull", "adapters", "rank")}
        strategy = Strategy(scales=scales, reinitialise=chosen.reinitialise, **parts)
        source, weights = load_model(job["source"])
        of_target = {job["species"][1]: job["species"][0]}
        potential, params = start(strategy, source, weights, jax.random.key(0), species=of_target)
        first = learnable(strategy, potential, params, jax.random.key(0))
        energy, optimizer = first.energy, optimizer_of(strategy, optimizer, first.params)
    loss = MatchingLoss(
        energy=settings.energy_weight, forces=settings.forces_weight, stress=settings.stress_weight
    )
    held_out = HeldOut()
    algorithm = force_matching(
        energy,
        loss,
        optimizer,
        max_gradient_norm=10.0,
        validation=cast(Batches, held_out),
        validate_every=max(1, steps // VALIDATIONS),
    )

    @jax.jit
    def sums(params: Any, batch: Batch) -> dict[str, Sums]:
        def of_slot(slot: Batch) -> dict[str, Sums]:
            found = predict(potential.energy, params, slot, loss.labels)
            return sum_errors(loss, found, slot, loss.labels)

        return jax.tree.map(lambda rows: jnp.sum(rows, axis=0), jax.lax.map(of_slot, batch))

    return Programs(potential, strategy, weights, algorithm, held_out, sums)


def times_rate() -> optax.GradientTransformation:
    """Multiplies updates by the rate that :func:`with_rate` puts into the state."""

    def init(params: Any) -> RateState:
        del params
        return RateState(jnp.ones((), jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree.map(lambda x: state.rate.astype(x.dtype) * x, updates), state

    return optax.GradientTransformation(init, update)


def with_rate(algorithm: Algorithm, rate: float) -> Algorithm:
    """The algorithm at a learning rate, without another program."""

    def init(params: Any) -> Any:
        state = algorithm.init(params)
        optimizer = optax.tree.set(state.optimizer, rate=jnp.asarray(rate, jnp.float32))
        return state._replace(optimizer=optimizer)

    return algorithm._replace(init=init)


def test_errors(
    programs: Programs, params: Any, examples: list[Example], groups: list[str], like: Batches
) -> dict[str, float]:
    """Errors of all test structures and, where there are several, of each of their groups."""
    named = {"test": [True] * len(groups)}
    if len(names := sorted(set(groups), key=lambda name: (len(name), name))) > 1:
        named |= {f"test, {name}": [group == name for group in groups] for name in names}
    metrics = {}
    for name, members in named.items():
        part = [one for one, member in zip(examples, members, strict=True) if member]
        batches = Batches(part, like.batch_size, shuffle=False, like=like)
        found = [jax.device_get(programs.sums(params, batch)) for batch in batches.epoch()]
        totals = jax.tree.map(lambda *rows: np.sum(rows, axis=0), *found)
        metrics |= {f"{name}/{key}": value for key, value in error_metrics(totals).items()}
    return metrics


@functools.lru_cache(maxsize=8)
def read(path: str) -> Data:
    return read_systems(path, dtype=np.float64)


@functools.lru_cache(maxsize=8)
def groups_of(path: str) -> list[str]:
    """The group of every structure of a file; empty where it has none."""
    return [str(atoms.info.get("group", "")) for atoms in ase.io.iread(path, ":")]


def rms_force(path: str) -> float:
    """Root mean square of force components of a file, eV/Å, to two digits."""
    parts = [np.ravel(labels.forces) for _, labels in read(path) if labels.forces is not None]
    return float(f"{np.sqrt(np.mean(np.concatenate(parts) ** 2)):.2g}")


def record(job: Job, programs: Programs) -> dict[str, Any]:
    """What the model file says of its training."""
    kept: dict[str, Any] = {"seed": job.seed, "species": list(job.species)}
    if job.trial is not None:
        kept |= {"trial": job.trial._asdict(), "transfer": programs.strategy.record()}
    return kept


def model_folder(base: Path, trial: Trial, groups: tuple[str, ...] = ()) -> Path:
    only = "".join(f"-{group.replace(' ', '')}" for group in groups)
    return base / f"{trial.strategy}-{trial.size}-{trial.seed}-{trial.rate:g}{only}"
