"""`Simulation`: runs of molecular dynamics in compiled chunks, one system or replicas."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel._chunk import Chunk, Observe, forces, make_chunk, replica_map
from mosaicmd.kernel._contacts import check_contacts
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.integrators import Integrator, MDState, maxwell_boltzmann
from mosaicmd.kernel.momenta import kinetic_tensor
from mosaicmd.kernel.neighbors import grow, neighbor_list
from mosaicmd.kernel.potentials import EnergyFn, Params, evaluate
from mosaicmd.kernel.systems import System, volume
from mosaicmd.kernel.trajectory import StatePoint, Trajectory, concatenate
from mosaicmd.kernel.units import KELVIN

Array = jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("md", "neighbors", "step"),
    meta_fields=("plan",),
)
@dataclasses.dataclass(frozen=True)
class RunState:
    """Where a run stands."""

    md: MDState
    neighbors: Any
    step: int  # steps done since `start`
    plan: Any  # the neighbor plan that `neighbors` belongs to


class SimulationError(RuntimeError):
    """A run that cannot go on.

    Attributes:
        step: the first bad step.
        atom: index of the atom to look at.
        replica: its replica, ``None`` without replicas.
        trajectory: the frames before the bad step, ``None`` if there are none.
    """

    def __init__(
        self,
        message: str,
        *,
        step: int,
        atom: int,
        replica: int | None = None,
        trajectory: Trajectory | None = None,
    ) -> None:
        super().__init__(message)
        self.step, self.atom, self.replica = step, atom, replica
        self.trajectory = trajectory


class Simulation:
    """Molecular dynamics of an energy function.

    Nothing of a run is held here but compiled programs: one per neighbor plan and number
    of replicas. Parameters, positions and keys are arguments of these programs, so
    changing them compiles nothing.
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
        observe: Observe | None = None,
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
            observe: ``(params, system, graph, momenta) -> dict`` of arrays, evaluated once
                per frame; the graph reaches at least to the cutoff. A function of one
                system, also in runs of replicas.
            store_momenta: keep the momenta of every frame.
            max_temperature_kelvin: the run stops with an error above this; by default
                20 times the temperature of thermostat or start, at least 10 000 K.
            min_distance: atoms closer than this at the start are an error, Å.

        Raises:
            ValueError: for settings out of range.
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
        self._chunk = jax.jit(
            make_chunk(
                energy_fn,
                integrator,
                observe,
                every=self.every,
                capacity=self.chunk_frames,
                store_momenta=store_momenta,
            ),
            static_argnums=0,
        )
        self._prepare = jax.jit(self._prepared, static_argnums=0)

    def start(
        self,
        key: Array,
        params: Params,
        system: System,
        *,
        momenta: Array | None = None,
        kT: float | Array | None = None,
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
            replicas: number of copies with their own momenta and noise.

        Raises:
            ValueError: for shapes that do not fit, a missing temperature, or atoms that
                overlap.
        """
        system, count = _replicated(system, replicas)
        kT = self.integrator.kT if kT is None else kT
        if momenta is None and kT is None:
            raise ValueError(
                f"{self.integrator.settings['integrator']!r} has no temperature of its own: "
                "give `momenta`, or `kT` (eV) to draw them"
            )
        key_momenta, key_noise = jax.random.split(key)
        bath = None if kT is None else jnp.asarray(kT, system.positions.dtype)
        if count is not None:
            key_momenta = jax.random.split(key_momenta, count)
            key_noise = jax.random.split(key_noise, count)
            bath = None if bath is None else jnp.broadcast_to(bath, (count,))
        over = jax.vmap if count is not None else lambda function: function
        if momenta is None:
            momenta = over(maxwell_boltzmann)(key_momenta, system, bath)
        else:
            momenta = jnp.asarray(momenta, system.positions.dtype)
            if count is not None and momenta.ndim == 2:
                momenta = jnp.broadcast_to(momenta, (count, *momenta.shape))
            if momenta.shape != system.positions.shape:
                raise ValueError(
                    f"`momenta` has shape {momenta.shape}, the system {system.positions.shape}"
                )
        md = over(self.integrator.init)(key_noise, system, momenta, bath)
        one = system if count is None else jax.tree.map(lambda leaf: leaf[0], system)
        plan = neighbor_list(one, self.cutoff, self.skin)
        state = RunState(md, plan.build(system), 0, plan)
        state = self._refreshed(params, state)
        check_contacts(state.md, state.neighbors.graph, self.integrator.timestep, self.min_distance)
        return state

    def run(
        self,
        params: Params,
        state: RunState,
        n_steps: int,
    ) -> tuple[RunState, Trajectory]:
        """Propagate by ``n_steps`` and return every frame on the way.

        Forces are evaluated anew at the start, so ``params`` may differ from those that
        ``state`` comes from.

        Args:
            params: of the energy function.
            state: from :meth:`start` or an earlier run; it is not used up.
            n_steps: a multiple of ``every``.

        Returns:
            The state at the end, and the frames. With replicas, arrays of the trajectory
            have the axes ``[n_frames, replicas, ...]``; :func:`split_replicas` takes them
            apart.

        Raises:
            ValueError: if ``n_steps`` is no positive multiple of ``every``.
            SimulationError: if energy or momenta stop being finite, or the temperature
                exceeds the limit.
        """
        if n_steps < 1 or n_steps % self.every:
            raise ValueError(
                f"`n_steps` must be a positive multiple of every={self.every}, got {n_steps!r}"
            )
        limit = self._temperature_limit(state.md)
        state = self._refreshed(params, state)
        pieces: list[Trajectory] = []
        n_frames = n_steps // self.every
        while n_frames > 0:
            state, piece = self._advanced(params, state, n_frames, limit, pieces)
            pieces.append(piece)
            n_frames -= piece.n_frames
        return state, concatenate(pieces)

    def _advanced(
        self,
        params: Params,
        state: RunState,
        n_frames: int,
        limit: Array,
        pieces: list[Trajectory],
    ) -> tuple[RunState, Trajectory]:
        """One chunk of at most ``n_frames``, repeated with a larger plan if lists overflow."""
        n_frames = min(n_frames, self.chunk_frames)
        while True:
            chunk = self._chunk(
                state.plan, params, state.md, state.neighbors, jnp.int32(n_frames), limit
            )
            if not np.any(chunk.neighbors.graph.overflow):
                break
            state = _regrown(state, chunk.neighbors)
        done = RunState(chunk.md, chunk.neighbors, state.step + int(chunk.n_steps), state.plan)
        if not chunk.healthy:
            piece = [self._trajectory(state, chunk)] if int(chunk.n_frames) else []
            raise self._failure(done, pieces + piece)
        return done, self._trajectory(state, chunk)

    def _trajectory(self, start: RunState, chunk: Chunk) -> Trajectory:
        """The completed frames of a chunk that began at ``start``."""
        n_frames = int(chunk.n_frames)
        frames = jax.tree.map(lambda rows: jnp.asarray(np.asarray(rows)[:n_frames]), chunk.frames)
        system = chunk.md.system
        if system.positions.ndim == 3:
            system = jax.tree.map(lambda leaf: leaf[0], system)
        steps = start.step + self.every * np.arange(1, n_frames + 1)
        return Trajectory(
            systems=system._replace(positions=frames["positions"], cell=frames["cell"]),
            quantities=frames["quantities"],
            state_point=StatePoint(_bath_temperature(chunk.md)),
            momenta=frames.get("momenta"),
            time=jnp.asarray(steps * self.integrator.timestep),
        )

    def _refreshed(self, params: Params, state: RunState) -> RunState:
        """The state with neighbors and forces that belong to its positions and ``params``."""
        while True:
            md, neighbors = self._prepare(state.plan, params, state.md, state.neighbors)
            if not np.any(neighbors.graph.overflow):
                return RunState(md, neighbors, state.step, state.plan)
            state = _regrown(state, neighbors)

    def _prepared(
        self, plan: Any, params: Params, md: MDState, neighbors: Any
    ) -> tuple[MDState, Any]:
        neighbors = plan.update(neighbors, md.system)
        energy, force = forces(self.energy_fn, params, md.system, neighbors.graph)
        mask = md.system.mask[..., None]
        return md._replace(energy=energy, forces=jnp.where(mask, force, 0.0)), neighbors

    def _temperature_limit(self, md: MDState) -> Array:
        """Above this ``kT`` a run has exploded; shape ``[]`` or ``[replicas]``."""
        dtype = md.momenta.dtype
        if self.max_temperature_kelvin is not None:
            highest = np.asarray(self.max_temperature_kelvin * KELVIN)
        else:
            mean_square = jnp.mean(md.momenta**2 / md.system.masses[..., None], axis=(-2, -1))
            kT = np.maximum(np.nan_to_num(_bath_temperature(md)), np.asarray(mean_square))
            highest = np.maximum(20.0 * kT, 1.0e4 * KELVIN)
        return jnp.broadcast_to(jnp.asarray(highest, dtype), md.energy.shape)

    def _failure(self, state: RunState, pieces: list[Trajectory]) -> SimulationError:
        """The error for a state that is no longer healthy."""
        md = jax.device_get(state.md._replace(key=None))
        masses = np.where(md.system.mask, md.system.masses, np.inf)[..., None]
        kinetic = 0.5 * np.sum(md.momenta.astype(float) ** 2 / masses, axis=-1)
        force = np.sum(md.forces.astype(float) ** 2, axis=-1)
        broken = ~np.isfinite(kinetic + force)
        worst = int(np.argmax(np.where(broken, np.inf, kinetic)))
        atom = worst % kinetic.shape[-1]
        replica = worst // kinetic.shape[-1] if kinetic.ndim == 2 else None
        own = kinetic if replica is None else kinetic[replica]
        n_atoms = np.sum(md.system.mask if replica is None else md.system.mask[replica])
        temperature = 2.0 * np.sum(own) / (3.0 * n_atoms * KELVIN)
        where = f"atom {atom}" + ("" if replica is None else f" of replica {replica}")
        what = (
            f"the forces on or momentum of {where} are not finite"
            if broken.any()
            else f"the temperature reached {temperature:.4g} K, {where} being the fastest"
        )
        message = (
            f"the run broke at step {state.step}: {what}. Try a smaller timestep (now "
            f"{self.integrator.timestep:.4g} t), look for overlapping atoms in the start "
            "structure, and ask whether the potential was trained for such configurations; "
            "if it is meant to be this hot, raise `max_temperature_kelvin`"
        )
        trajectory = concatenate(pieces) if pieces else None
        return SimulationError(
            message, step=state.step, atom=atom, replica=replica, trajectory=trajectory
        )


def split_replicas(trajectory: Trajectory) -> list[Trajectory]:
    """One trajectory per replica from the trajectory of a run with replicas.

    Raises:
        ValueError: if the trajectory has no replica axis.
    """
    systems = trajectory.systems
    if systems.positions.ndim != 4:
        raise ValueError("the trajectory has no replica axis: it is that of one system")

    def one(index: int) -> Trajectory:
        quantities, momenta = jax.tree.map(
            lambda leaf: leaf[:, index], (trajectory.quantities, trajectory.momenta)
        )
        kT = np.asarray(trajectory.state_point.kT)
        return trajectory._replace(
            systems=systems._replace(
                positions=systems.positions[:, index], cell=systems.cell[:, index]
            ),
            quantities=quantities,
            momenta=momenta,
            state_point=trajectory.state_point._replace(kT=float(kT[index] if kT.ndim else kT)),
        )

    return [one(index) for index in range(systems.positions.shape[1])]


def pressure_observer(energy_fn: EnergyFn) -> Observe:
    """An ``observe`` function for the instantaneous pressure of a periodic system.

    It returns ``pressure_tensor``, kinetic part plus virial, ``[3, 3]``, and its mean
    diagonal ``pressure``, both in eV/Å³. Where the total momentum is conserved at zero,
    the kinetic part is that of ``N - 1`` atoms.
    """

    def observe(params: Params, system: System, graph: Graph, momenta: Array) -> dict[str, Array]:
        stress = evaluate(energy_fn, params, system, graph, stress=True).stress
        tensor = kinetic_tensor(system, momenta) / volume(system) - stress
        return {"pressure_tensor": tensor, "pressure": jnp.trace(tensor) / 3.0}

    return observe


def _replicated(system: System, replicas: int | None) -> tuple[System, int | None]:
    """The system with its replica axis, and the length of that axis."""
    if system.positions.ndim == 3:
        count = system.positions.shape[0]
        if replicas not in (None, count):
            raise ValueError(f"`replicas` is {replicas} but `system` is a batch of {count}")
        return system, count
    if replicas is None:
        return system, None
    if replicas < 1:
        raise ValueError(f"`replicas` must be positive, got {replicas}")
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (replicas, *leaf.shape)), system)
    return copies, replicas


def _regrown(state: RunState, overflowing: Any) -> RunState:
    """The state with a larger plan and its neighbors built at the same reference positions."""
    plan = grow(state.plan, overflowing)
    old = state.neighbors
    reference = state.md.system._replace(positions=old.positions, cell=old.cell)
    return RunState(state.md, plan.build(reference), state.step, plan)


def _bath_temperature(md: MDState) -> np.ndarray:
    """``kT`` of the thermostat, NaN without one; eV."""
    kT = getattr(md.thermostat, "kT", math.nan)
    return np.asarray(kT, float)
