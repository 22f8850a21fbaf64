"""`Simulation`: runs of molecular dynamics in compiled chunks, one system or replicas."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel._chunk import Chunk, Observe, make_chunk
from mosaicmd.kernel._contacts import ContactError, check_contacts
from mosaicmd.kernel._explosions import (
    SimulationError,
    bath_pressure,
    bath_temperature,
    explosion,
    temperature_limit,
)
from mosaicmd.kernel._run_directory import RunDirectory
from mosaicmd.kernel._run_progress import run_progress
from mosaicmd.kernel._run_state import Frames, RunState, identity, resumed
from mosaicmd.kernel.compilation import compiler_options
from mosaicmd.kernel.integrators import Integrator, MDState, maxwell_boltzmann
from mosaicmd.kernel.neighbors import NeighborList, grow, neighbor_list
from mosaicmd.kernel.observables import Observable
from mosaicmd.kernel.observables import observe as observe_together
from mosaicmd.kernel.potentials import EnergyFn, Params
from mosaicmd.kernel.replicas import per_replica, replicated, split_replicas
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.trajectory import StatePoint, Trajectory

__all__ = [
    "ContactError",
    "RunState",
    "Simulation",
    "SimulationError",
    "split_replicas",
]

Array = jax.Array

_build = jax.jit(NeighborList.build, static_argnums=0)


class Simulation:
    """Molecular dynamics of an energy function.

    Nothing of a run is held here but compiled programs: one per neighbor plan and number
    of replicas. Parameters, positions and keys are arguments of these programs, so
    changing them compiles nothing::

        simulation = Simulation(energy_fn, langevin(dt, friction, kT), cutoff=6.0, every=100)
        state = simulation.start(key, params, system)
        state, _ = simulation.run(params, state, 5_000)
        state, trajectory = simulation.run(params, state, 100_000, directory="production")
    """

    def __init__(
        self,
        energy_fn: EnergyFn,
        integrator: Integrator,
        *,
        cutoff: float,
        skin: float = 1.0,
        every: int,
        chunk_frames: int = 25,
        observe: Observe | Observable | Sequence[Observable] | None = None,
        store_momenta: bool = False,
        max_temperature_kelvin: float | None = None,
        min_distance: float = 0.3,
    ) -> None:
        """Settings of the runs.

        Args:
            energy_fn: per-atom energies.
            integrator: from :mod:`mosaicmd.kernel.integrators`.
            cutoff: of the energy function, Å.
            skin: by how much neighbor lists reach beyond the cutoff, Å.
            every: steps between frames.
            chunk_frames: frames per compiled chunk, which is also the distance between
                checkpoints and updates of the progress bar.
            observe: what to evaluate once per frame besides ``energy``, ``kinetic_energy``
                (eV), ``temperature_kelvin`` and, where there is one, the integrator's
                ``conserved_energy`` (eV), with a barostat also ``volume`` (Å³): observables,
                or a function ``(params, system, graph, momenta) -> dict`` of one system, also
                in runs of replicas. The graph reaches at least to the cutoff.
            store_momenta: keep the momenta of every frame.
            max_temperature_kelvin: the run stops with an error above this; by default
                20 times the temperature of thermostat or start, at least 10 000 K.
            min_distance: atoms closer than this at the start are an error, Å.

        Raises:
            ValueError: for settings out of range, or observables that look farther than
                the cutoff.
        """
        for name, value in (("cutoff", cutoff), ("skin", skin), ("min_distance", min_distance)):
            if not (value >= 0.0 and math.isfinite(value)) or (name == "cutoff" and value == 0.0):
                raise ValueError(f"`{name}` must be a length in Å, got {value!r}")
        for name, count in (("every", every), ("chunk_frames", chunk_frames)):
            if not isinstance(count, int | np.integer) or count < 1:
                raise ValueError(f"`{name}` must be a positive integer, got {count!r}")
        if max_temperature_kelvin is not None and not max_temperature_kelvin > 0.0:
            raise ValueError(
                f"`max_temperature_kelvin` must be positive, got {max_temperature_kelvin!r}"
            )
        self.energy_fn, self.integrator = energy_fn, integrator
        self.cutoff, self.skin = float(cutoff), float(skin)
        self.every, self.chunk_frames = int(every), int(chunk_frames)
        self.max_temperature_kelvin, self.min_distance = max_temperature_kelvin, min_distance
        self._chunk = make_chunk(
            energy_fn,
            integrator,
            _observe_function(observe, self.cutoff),
            every=self.every,
            capacity=self.chunk_frames,
            store_momenta=store_momenta,
        )
        self._run_chunk = jax.jit(
            self._chunk, static_argnums=0, compiler_options=compiler_options(training=False)
        )
        self._begin = jax.jit(self._begun)

    def start(
        self,
        key: Array,
        params: Params,
        system: System,
        *,
        momenta: Array | None = None,
        kT: float | Array | None = None,
        pressure: float | Array | None = None,
        replicas: int | None = None,
    ) -> RunState:
        """The state before the first step, with neighbors and forces.

        Args:
            key: typed PRNG key, for momenta and noise.
            params: of the energy function.
            system: one structure, or a batch whose members become replicas.
            momenta: ``[n_atoms, 3]`` or ``[replicas, n_atoms, 3]``, u Å/t; by default
                drawn at ``kT``.
            kT: temperature of momenta and thermostat, eV, one or one per replica; by
                default that of the integrator.
            pressure: of the barostat, eV/Å³, one or one per replica; by default that of the
                integrator.
            replicas: number of copies with their own momenta and noise.

        Raises:
            ValueError: for shapes that do not fit, a missing temperature, a pressure without
                a barostat, or a barostat without a periodic cell.
            ContactError: for atoms that overlap, or forces that no time step survives.
        """
        system, count = replicated(system, replicas)
        kT = self.integrator.kT if kT is None else kT
        dtype = system.positions.dtype
        if kT is not None:
            kT = per_replica("kT", kT, count, system)
        if pressure is not None:
            pressure = per_replica("pressure", pressure, count, system)
        self._require_cell(system, pressure)
        if momenta is not None:
            momenta = jnp.asarray(momenta, dtype)
            if momenta.shape not in (system.positions.shape, system.positions.shape[-2:]):
                raise ValueError(
                    f"`momenta` has shape {momenta.shape}, the system {system.positions.shape}"
                )
            momenta = jnp.broadcast_to(momenta, system.positions.shape)
        elif kT is None:
            raise ValueError(
                f"{self.integrator.settings['integrator']!r} has no temperature of its own: "
                "give `momenta`, or `kT` (eV) to draw them"
            )
        md = self._begin(key, system, momenta, kT, pressure)
        plan = neighbor_list(system, self.cutoff, skin=self.skin)
        state = self._refreshed(params, plan, md, 0)
        check_contacts(state.md, state.neighbors.graph, self.integrator.timestep, self.min_distance)
        return state

    def run(
        self,
        params: Params,
        state: RunState,
        n_steps: int,
        *,
        progress: bool | None = None,
        directory: str | Path | None = None,
    ) -> tuple[RunState, Trajectory]:
        """Propagate by ``n_steps`` and return every frame on the way.

        Neighbors and forces are computed anew at the start, so ``params`` may differ from
        those that ``state`` comes from, and its arrays may be replaced.

        With a ``directory``, the frames and the complete state are written after every
        chunk. The same call again, also after a kill at any moment, goes on from there
        and returns the same bits as one that was never interrupted; a larger ``n_steps``
        extends the run.

        Args:
            params: of the energy function.
            state: from :meth:`start` or an earlier run; it is not used up.
            n_steps: a multiple of ``every``.
            progress: show progress on stderr; by default only if the run takes longer than
                about five seconds.
            directory: where this run, and no other, is kept.

        Returns:
            The state at the end, and the frames. With replicas, arrays of the trajectory
            have the axes ``[n_frames, replicas, ...]``; :func:`split_replicas` takes them
            apart. ``state_point.kT`` is NaN without a thermostat.

        Raises:
            ValueError: if ``n_steps`` is no positive multiple of ``every``, or the
                directory belongs to another run.
            SimulationError: if energy or momenta stop being finite, or the temperature
                exceeds the limit. It holds the frames so far.
            DiskFullError: if a chunk cannot be written; what was written before is whole,
                and the same call goes on from there.
        """
        if n_steps < 1 or n_steps % self.every:
            raise ValueError(
                f"`n_steps` must be a positive multiple of every={self.every}, got {n_steps!r}"
            )
        limit = temperature_limit(state.md, self.max_temperature_kelvin)
        state = self._refreshed(params, state.plan, state.md, state.step)
        end = state.step + int(n_steps)
        frames: list[Frames] = []
        files = None
        if directory is not None:
            like = self._frames_like(params, state, limit)
            settings = {
                "integrator": dict(self.integrator.settings),
                "cutoff": self.cutoff,
                "skin": self.skin,
                "every": self.every,
                "chunk_frames": self.chunk_frames,
            }
            files = RunDirectory(directory, settings | identity(params, state, like))
            state, frames = resumed(files, state, end, self.every, like)
        with run_progress(progress, self.integrator, state.step, end) as advance:
            while state.step < end:
                chunk, start = self._advanced(params, state, end, limit)
                if int(chunk.n_frames):
                    frames.append(self._frames(start.step, chunk))
                state = RunState(
                    chunk.md, chunk.neighbors, start.step + int(chunk.n_steps), start.plan
                )
                if files is not None and int(chunk.n_frames):
                    files.save_frames(int(frames[-1]["step"][-1]), frames[-1])
                if not chunk.healthy:
                    raise explosion(
                        state.md,
                        state.step,
                        self.integrator.timestep,
                        checkpoint=None if files is None else files.newest(),
                        trajectory=self._trajectory(state.md, frames) if frames else None,
                    )
                if files is not None:
                    metadata = {"plan": dataclasses.asdict(state.plan)}
                    files.save_state(state.step, state, metadata)
                advance(state.step)
        return state, self._trajectory(state.md, frames)

    def _require_cell(self, system: System, pressure: Array | None) -> None:
        name = self.integrator.settings["integrator"]
        if self.integrator.needs_stress and not np.all(system.pbc):
            raise ValueError(
                f"{name!r} needs a cell that is periodic in three directions, `pbc` is "
                f"{np.asarray(system.pbc).tolist()}"
            )
        if pressure is not None and not self.integrator.needs_stress:
            raise ValueError(f"`pressure` is given, but {name!r} has no barostat")

    def _begun(
        self,
        key: Array,
        system: System,
        momenta: Array | None,
        kT: Array | None,
        pressure: Array | None,
    ) -> MDState:
        """Momenta, thermostat, barostat and keys; no forces yet."""

        def one(
            draw: Array, noise: Array, system: System, momenta: Any, kT: Any, pressure: Any
        ) -> MDState:
            momenta = maxwell_boltzmann(draw, system, kT) if momenta is None else momenta
            md = self.integrator.init(noise, system, momenta, kT)
            if pressure is None:
                return md
            return md._replace(barostat=md.barostat._replace(pressure=pressure))

        draw, noise = jax.random.split(key)
        if system.positions.ndim == 2:
            return one(draw, noise, system, momenta, kT, pressure)
        count = system.positions.shape[0]
        keys = jax.random.split(draw, count), jax.random.split(noise, count)
        return jax.vmap(one)(*keys, system, momenta, kT, pressure)

    def _advanced(
        self, params: Params, state: RunState, end: int, limit: Array
    ) -> tuple[Chunk, RunState]:
        """One chunk, repeated with a larger plan while lists overflow; and where it began."""
        n_frames = jnp.int32(min((end - state.step) // self.every, self.chunk_frames))
        while True:
            chunk = self._run_chunk(state.plan, params, state.md, state.neighbors, n_frames, limit)
            if not np.any(chunk.neighbors.graph.overflow):
                return chunk, state
            # Built where the list was built last, so the new list is renewed at the same
            # steps and differs by its padding alone.
            plan = grow(state.plan, chunk.neighbors)
            old = state.neighbors
            reference = state.md.system._replace(positions=old.positions, cell=old.cell)
            while np.any((neighbors := _build(plan, reference)).graph.overflow):
                plan = grow(plan, neighbors)
            state = RunState(state.md, neighbors, state.step, plan)

    def _refreshed(self, params: Params, plan: NeighborList, md: MDState, step: int) -> RunState:
        """The state with neighbors and forces that belong to its positions and ``params``."""
        while np.any((neighbors := _build(plan, md.system)).graph.overflow):
            plan = grow(plan, neighbors)
        no_limit = jnp.full(md.energy.shape, jnp.inf, md.momenta.dtype)
        chunk = self._run_chunk(plan, params, md, neighbors, jnp.int32(0), no_limit)
        return RunState(chunk.md, chunk.neighbors, step, plan)

    def _frames(self, first_step: int, chunk: Chunk) -> Frames:
        """The completed frames of a chunk that began at ``first_step``, on the host."""
        n_frames = int(chunk.n_frames)
        frames = jax.tree.map(lambda rows: np.array(rows[:n_frames]), jax.device_get(chunk.frames))
        return frames | {"step": first_step + self.every * np.arange(1, n_frames + 1)}

    def _trajectory(self, md: MDState, pieces: list[Frames]) -> Trajectory:
        frames = jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)
        time = frames.pop("step") * self.integrator.timestep
        frames = jax.tree.map(jnp.asarray, frames)
        system = md.system
        if system.positions.ndim == 3:
            system = jax.tree.map(lambda leaf: leaf[0], system)
        pressure = bath_pressure(md)
        state_point = StatePoint(
            _number(bath_temperature(md)), None if pressure is None else _number(pressure)
        )
        return Trajectory(
            systems=system._replace(positions=frames["positions"], cell=frames["cell"]),
            quantities=frames["quantities"],
            state_point=state_point,
            momenta=frames.get("momenta"),
            time=jnp.asarray(time),
        )

    def _frames_like(self, params: Params, state: RunState, limit: Array) -> Frames:
        """Shapes and dtypes of what :meth:`_frames` returns."""
        chunk = jax.eval_shape(
            functools.partial(self._chunk, state.plan),
            params,
            state.md,
            state.neighbors,
            jnp.int32(1),
            limit,
        )
        return chunk.frames | {"step": np.zeros(self.chunk_frames, np.int64)}


def _observe_function(
    observe: Observe | Observable | Sequence[Observable] | None, cutoff: float
) -> Observe | None:
    """One function for whatever was asked to be observed."""
    if isinstance(observe, Observable):
        observe = [observe]
    if observe is None or not isinstance(observe, Sequence):
        return observe
    return observe_together(observe, cutoff=cutoff)


def _number(values: np.ndarray) -> float | Array:
    """One number, or one per replica."""
    return jnp.asarray(values) if values.ndim else float(values)
