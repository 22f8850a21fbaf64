"""Runs against ASE, themselves, closed forms, and everything that may interrupt them."""

import dataclasses
import functools
import itertools
import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel.files import DiskFullError
from mosaicmd.kernel.graphs import edge_vectors, host_graph, sum_edges
from mosaicmd.kernel.integrators import langevin, maxwell_boltzmann, nose_hoover, nve
from mosaicmd.kernel.momenta import kinetic_energy
from mosaicmd.kernel.observables import density, pressure, pressure_tensor
from mosaicmd.kernel.potentials import evaluate
from mosaicmd.kernel.replicas import joined_replicas
from mosaicmd.kernel.simulation import Simulation, SimulationError, split_replicas
from mosaicmd.kernel.systems import make_system, pad_system, stack_systems, to_ase, volume
from mosaicmd.kernel.units import FEMTOSECOND, KELVIN, PICOSECOND

TIMESTEP = 4.0 * FEMTOSECOND
KT = 80.0 * KELVIN
CUTOFF = 5.5
ARGON = {"sigma": jnp.asarray(3.405), "epsilon": jnp.asarray(0.0104)}


def lennard_jones(params, system, graph):
    """Truncated, not shifted: its forces are those of ``ase.calculators.lj``."""
    square = jnp.sum(edge_vectors(system, graph) ** 2, axis=-1)
    sixth = (params["sigma"] ** 2 / square) ** 3
    energy = 2.0 * params["epsilon"] * (sixth**2 - sixth)
    return sum_edges(jnp.where(square < CUTOFF**2, energy, 0.0), graph, system.n_atoms)


def no_energy(params, system, graph):
    return jnp.zeros(system.n_atoms, system.positions.dtype) * system.positions[:, 0]


def pressures(energy_fn, cutoff=CUTOFF):
    return [pressure_tensor(energy_fn, cutoff=cutoff), pressure(energy_fn, cutoff=cutoff)]


def crystal(n=2, spacing=5.9, seed=0, dtype=None):
    corners = np.array(list(itertools.product(range(n), repeat=3)), float)
    basis = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    sites = (corners[:, None] + basis).reshape(-1, 3) * spacing
    sites += np.random.default_rng(seed).normal(0.0, 0.05, sites.shape)
    return make_system(sites, 18, cell=n * spacing, dtype=dtype)


def argon(integrator=None, **settings):
    integrator = langevin(TIMESTEP, 1.0 / PICOSECOND, KT) if integrator is None else integrator
    return Simulation(
        lennard_jones, integrator, **{"cutoff": CUTOFF, "every": 5, "chunk_frames": 4} | settings
    )


@functools.cache
def shared(every=5):
    """A simulation that tests share, with all that it has compiled."""
    return argon(every=every)


def z_score(samples, expected, n_blocks=25):
    samples = np.asarray(samples)
    samples = samples[: len(samples) // n_blocks * n_blocks].reshape(n_blocks, -1).mean(axis=1)
    return (samples.mean() - expected) / (samples.std(ddof=1) / np.sqrt(n_blocks))


def assert_same(one, other):
    """Equal to the bit, whatever the pytree."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(jnp.asarray(a).dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# --- physics


@pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning:ase")
def test_nve_follows_ase_velocity_verlet():
    """100 steps of another program with the same forces, to 1e-10 Å."""
    from ase.calculators.lj import LennardJones
    from ase.md.verlet import VelocityVerlet

    system = crystal()
    momenta = maxwell_boltzmann(jax.random.key(0), system, 2.0 * KT)
    simulation = argon(nve(TIMESTEP), every=20, store_momenta=True)
    state = simulation.start(jax.random.key(1), ARGON, system, momenta=momenta)
    _, trajectory = simulation.run(ARGON, state, 100)

    atoms = to_ase(system)
    atoms.calc = LennardJones(sigma=3.405, epsilon=0.0104, rc=CUTOFF, smooth=False)
    atoms.set_momenta(np.asarray(momenta))
    dynamics = VelocityVerlet(atoms, timestep=TIMESTEP)  # ASE's time unit is ours
    for frame in range(5):
        dynamics.run(20)
        np.testing.assert_allclose(
            trajectory.systems.positions[frame], atoms.positions, rtol=0, atol=1e-10
        )
        np.testing.assert_allclose(
            trajectory.momenta[frame], atoms.get_momenta(), rtol=0, atol=1e-10
        )
    assert np.abs(atoms.positions - np.asarray(system.positions)).max() > 0.5
    np.testing.assert_allclose(trajectory.time, TIMESTEP * np.array([20, 40, 60, 80, 100]))
    assert np.isnan(trajectory.state_point.kT)


@pytest.mark.parametrize(
    "integrator",
    [langevin(TIMESTEP, 2.0 / PICOSECOND, KT), nose_hoover(TIMESTEP, KT, 50 * TIMESTEP)],
    ids=["langevin", "nose_hoover"],
)
def test_equipartition_in_a_crystal(integrator):
    """<K> = f kT / 2 for f = 3 N (Langevin) or 3 N - 3 (Nosé-Hoover) degrees, |z| < 4."""
    simulation = argon(integrator, every=10, chunk_frames=1000)
    state = simulation.start(jax.random.key(3), ARGON, pad_system(crystal(), 35))
    state, _ = simulation.run(ARGON, state, 2000)
    _, trajectory = simulation.run(ARGON, state, 25_000)
    assert abs(z_score(trajectory.quantities["temperature_kelvin"], 80.0)) < 4.0
    assert trajectory.state_point.kT == pytest.approx(KT)
    padding = np.asarray(trajectory.systems.positions)[:, 32:]
    np.testing.assert_array_equal(padding, np.zeros_like(padding))


def test_ideal_gas_pressure():
    """<p> = N kT / V, isotropic, |z| < 4."""
    box = np.random.default_rng(0).uniform(0.0, 20.0, (100, 3))
    system = make_system(box, 18, cell=20.0)
    simulation = Simulation(
        no_energy,
        langevin(TIMESTEP, 0.5 / TIMESTEP, KT),
        cutoff=2.0,
        every=10,
        chunk_frames=500,
        min_distance=0.0,
        observe=pressures(no_energy, 2.0),
    )
    state = simulation.start(jax.random.key(4), None, system)
    _, trajectory = simulation.run(None, state, 5000)
    expected = 100 * KT / 20.0**3
    quantities = trajectory.quantities
    assert abs(z_score(quantities["pressure"], expected)) < 4.0
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        entry = quantities["pressure_tensor"][:, i, j]
        assert abs(z_score(entry, expected if i == j else 0.0)) < 4.0


def test_pressure_is_the_derivative_in_the_volume():
    """p = 2 K / 3 V - dE/dV, by a central difference of the cell."""
    system = crystal(n=3)
    momenta = maxwell_boltzmann(jax.random.key(5), system, KT)
    graph = host_graph(system, CUTOFF + 0.5)
    tensor, mean = (
        one.per_frame(ARGON, system, graph, momenta) for one in pressures(lennard_jones)
    )

    def energy(factor):
        scaled = system._replace(
            positions=system.positions * factor ** (1 / 3), cell=system.cell * factor ** (1 / 3)
        )
        return evaluate(lennard_jones, ARGON, scaled, graph).energy

    slope = (energy(1.0 + 1e-6) - energy(1.0 - 1e-6)) / (2e-6 * volume(system))
    expected = 2.0 * kinetic_energy(system, momenta) / (3.0 * volume(system)) - slope
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    np.testing.assert_allclose(jnp.trace(tensor) / 3.0, mean)


# --- programs


def test_new_parameters_positions_keys_and_lengths_compile_nothing():
    traces = []

    def counted(params, system, graph):
        traces.append(1)
        return lennard_jones(params, system, graph)

    simulation = Simulation(
        counted,
        langevin(TIMESTEP, 1.0 / PICOSECOND, KT),
        cutoff=CUTOFF,
        every=5,
        chunk_frames=4,
        observe=pressures(counted),
    )
    state = simulation.start(jax.random.key(0), ARGON, crystal())
    state, first = simulation.run(ARGON, state, 40)
    n_traces = len(traces)
    other = {"sigma": jnp.asarray(3.3), "epsilon": jnp.asarray(0.011)}
    md = state.md._replace(
        system=state.md.system._replace(positions=state.md.system.positions + 0.01),
        key=jax.random.key(7),
    )
    _, second = simulation.run(other, dataclasses.replace(state, md=md), 55)
    simulation.start(jax.random.key(8), other, crystal(seed=1), kT=2.0 * KT)
    assert len(traces) == n_traces
    assert simulation._run_chunk._cache_size() == 1  # the gradient is in one program only
    assert (first.n_frames, second.n_frames) == (8, 11)
    assert not np.array_equal(first.quantities["energy"], second.quantities["energy"][:8])


def test_overflow_repeats_the_chunk_with_a_larger_plan():
    """A list that just fits at the start gives the trajectory of a generous one."""
    simulation = shared(20)
    generous = simulation.start(jax.random.key(2), ARGON, crystal(), kT=6.0 * KT)
    tight_plan = dataclasses.replace(generous.plan, row_length=int(generous.neighbors.longest_row))
    tight = dataclasses.replace(generous, plan=tight_plan)
    tiny = dataclasses.replace(generous, plan=dataclasses.replace(tight_plan, row_length=3))
    roomy = dataclasses.replace(generous, plan=dataclasses.replace(tight_plan, row_length=31 * 27))
    _, expected = simulation.run(ARGON, roomy, 400)
    for small in (tight, tiny):
        final, trajectory = simulation.run(ARGON, small, 400)
        assert final.plan.row_length > tight_plan.row_length
        assert not final.neighbors.graph.overflow
        np.testing.assert_allclose(
            trajectory.systems.positions, expected.systems.positions, rtol=0, atol=1e-8
        )
        np.testing.assert_allclose(trajectory.quantities["energy"], expected.quantities["energy"])


def test_replicas_are_independent_runs():
    systems = stack_systems([crystal(seed=seed) for seed in range(3)])
    momenta = jnp.stack(
        [
            maxwell_boltzmann(jax.random.key(i), crystal(), factor * KT)
            for i, factor in enumerate((0.1, 1.0, 4.0))
        ]
    )
    simulation = argon(nve(TIMESTEP), observe=pressures(lennard_jones))
    state = simulation.start(jax.random.key(0), ARGON, systems, momenta=momenta)
    state, together = simulation.run(ARGON, state, 100)
    assert together.systems.positions.shape == (20, 3, 32, 3)
    for i, replica in enumerate(split_replicas(together)):
        alone = simulation.start(jax.random.key(0), ARGON, crystal(seed=i), momenta=momenta[i])
        _, trajectory = simulation.run(ARGON, alone, 100)
        for name in ("energy", "pressure_tensor", "conserved_energy"):
            np.testing.assert_allclose(
                replica.quantities[name], trajectory.quantities[name], rtol=1e-8, atol=1e-12
            )
        np.testing.assert_allclose(
            replica.systems.positions, trajectory.systems.positions, rtol=0, atol=1e-9
        )
        assert replica.frame(3).positions.shape == (32, 3)


def test_replicas_may_have_their_own_temperatures():
    simulation = argon(langevin(TIMESTEP, 0.2 / TIMESTEP, KT), every=50, chunk_frames=100)
    temperatures = jnp.array([40.0, 80.0, 120.0]) * KELVIN
    state = simulation.start(jax.random.key(0), ARGON, crystal(), kT=temperatures, replicas=3)
    _, trajectory = simulation.run(ARGON, state, 5000)
    for kT, replica in zip(temperatures, split_replicas(trajectory), strict=True):
        assert replica.state_point.kT == pytest.approx(float(kT))
        assert abs(z_score(replica.quantities["temperature_kelvin"], kT / KELVIN, 20)) < 4.0
    with pytest.raises(ValueError, match="no replica axis"):
        split_replicas(replica)
    with pytest.raises(ValueError, match="state points of their own"):
        joined_replicas(trajectory)


def test_frames_of_replicas_are_joined_one_replica_after_another():
    simulation = argon(langevin(TIMESTEP, 0.2 / TIMESTEP, KT), every=10, store_momenta=True)
    state = simulation.start(jax.random.key(0), ARGON, crystal(), replicas=3)
    _, trajectory = simulation.run(ARGON, state, 20)
    joined = joined_replicas(trajectory)
    assert joined.n_frames == 6
    assert joined.time is None
    for k, replica in enumerate(split_replicas(trajectory)):
        frames = slice(2 * k, 2 * k + 2)
        np.testing.assert_array_equal(joined.systems.positions[frames], replica.systems.positions)
        np.testing.assert_array_equal(joined.momenta[frames], replica.momenta)
        np.testing.assert_array_equal(
            joined.quantities["energy"][frames], replica.quantities["energy"]
        )


def test_single_precision_stays_single_when_double_is_enabled():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), ARGON)
    simulation = argon(nose_hoover(TIMESTEP, KT, 50 * TIMESTEP), store_momenta=True)
    state = simulation.start(jax.random.key(0), params, crystal(dtype=jnp.float32))
    state, trajectory = simulation.run(params, state, 20)
    assert trajectory.systems.positions.dtype == trajectory.momenta.dtype == jnp.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.md.thermostat)} == {"float32"}
    assert trajectory.quantities["energy"].dtype == jnp.float64  # a sum over many atoms


def test_observables_are_recorded_by_name():
    observables = [density(), pressure_tensor(lennard_jones, cutoff=CUTOFF)]
    simulation = argon(observe=observables)
    state = simulation.start(jax.random.key(0), ARGON, crystal())
    _, trajectory = simulation.run(ARGON, state, 20)
    assert trajectory.quantities["pressure_tensor"].shape == (4, 3, 3)
    value, _ = observables[0](trajectory)
    np.testing.assert_allclose(value, 32 * 39.948 * 1.66054 / 11.8**3 * 1000, rtol=1e-4)


def test_progress_is_shown_on_request(capsys):
    simulation = shared()
    state = simulation.start(jax.random.key(0), ARGON, crystal())
    simulation.run(ARGON, state, 20)
    assert capsys.readouterr().err == ""
    simulation.run(ARGON, state, 20, progress=True)
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "ns/day" in shown


# --- what is refused


def test_atoms_that_overlap_are_named_with_their_distance():
    system = crystal()
    near = system.positions.at[7].set(system.positions[3] + jnp.array([0.12, 0.0, 0.16]))
    with pytest.raises(ValueError, match=r"atoms (3 and 7|7 and 3) are 0\.2 Å apart"):
        shared().start(jax.random.key(0), ARGON, system._replace(positions=near))
    batch = stack_systems([system, system._replace(positions=near)])
    with pytest.raises(ValueError, match=r"atoms 3 and 7 of replica 1 are 0\.2 Å apart"):
        shared().start(jax.random.key(0), ARGON, batch)


def test_forces_that_no_time_step_survives_are_named():
    system = crystal()
    near = system.positions.at[7].set(system.positions[3] + jnp.array([0.0, 0.0, 0.9]))
    with pytest.raises(ValueError, match=r"force on atom [37] .* atoms .* are 0\.9 Å apart"):
        shared().start(jax.random.key(0), ARGON, system._replace(positions=near))
    broken = ARGON | {"epsilon": jnp.asarray(jnp.nan)}
    with pytest.raises(ValueError, match="check the parameters"):
        shared().start(jax.random.key(0), broken, system)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cutoff": 0.0}, "`cutoff`"),
        ({"skin": -1.0}, "`skin`"),
        ({"every": 0}, "`every`"),
        ({"chunk_frames": 2.5}, "`chunk_frames`"),
        ({"max_temperature_kelvin": 0.0}, "`max_temperature_kelvin`"),
        ({"observe": [pressure_tensor(lennard_jones, cutoff=9.0)]}, "raise the cutoff"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        argon(**change)


def test_bad_starts_and_lengths_are_named():
    system = crystal()
    with pytest.raises(ValueError, match="give `momenta`, or `kT`"):
        argon(nve(TIMESTEP)).start(jax.random.key(0), ARGON, system)
    with pytest.raises(ValueError, match=r"`momenta` has shape \(3, 3\)"):
        shared().start(jax.random.key(0), ARGON, system, momenta=jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="`replicas` is 3 but"):
        shared().start(jax.random.key(0), ARGON, stack_systems([system] * 2), replicas=3)
    simulation = shared()
    state = simulation.start(jax.random.key(0), ARGON, system)
    for n_steps in (0, 7):
        with pytest.raises(ValueError, match="multiple of every=5"):
            simulation.run(ARGON, state, n_steps)
    taken = argon(observe=lambda params, system, graph, momenta: {"energy": jnp.zeros(())})
    with pytest.raises(ValueError, match=r"`observe` returns \['energy'\]"):
        taken.run(ARGON, state, 5)


# --- explosions


def edge_of_the_world(params, system, graph):
    """Zero up to x = 1.01 Å; beyond, energy and force are not numbers."""
    return 0.0 * jnp.sqrt(1.01 - system.positions[:, 0])


def walkers(speed):
    """Five atoms, of which the fourth walks along x, 0.02 Å per step at speed 1."""
    system = make_system(np.zeros((5, 3)) + np.arange(5)[:, None] * [0, 10.0, 0], 1, masses=1.0)
    momenta = jnp.zeros((5, 3)).at[3, 0].set(speed)
    return system, momenta


def test_the_first_bad_step_and_its_atom_are_named(tmp_path):
    """0.02 Å per step from x = 0: the 51st step is beyond the edge."""
    system, momenta = walkers(0.2)
    simulation = Simulation(edge_of_the_world, nve(0.1), cutoff=2.0, every=5, chunk_frames=4)
    state = simulation.start(jax.random.key(0), None, system, momenta=momenta)
    with pytest.raises(SimulationError, match=r"step 51: .* atom 3 .*smaller timestep") as caught:
        simulation.run(None, state, 100, directory=tmp_path / "run")
    error = caught.value
    assert (error.step, error.atom, error.replica) == (51, 3, None)
    assert error.trajectory.n_frames == 10
    assert error.checkpoint.endswith("step-000000000040.safetensors")
    assert error.checkpoint in str(error)
    # the frames are on disk too, and the same call ends the same way
    assert len(list((tmp_path / "run" / "frames").iterdir())) == 3
    with pytest.raises(SimulationError) as again:
        simulation.run(None, state, 100, directory=tmp_path / "run")
    assert str(again.value) == str(error)
    assert_same(again.value.trajectory, error.trajectory)


def test_the_broken_replica_is_named():
    system, _ = walkers(0.0)
    momenta = jnp.stack([walkers(speed)[1] for speed in (0.0, 0.01, 0.3)])
    simulation = Simulation(edge_of_the_world, nve(0.1), cutoff=2.0, every=5)
    state = simulation.start(jax.random.key(0), None, system, momenta=momenta, replicas=3)
    with pytest.raises(SimulationError, match=r"step 34: .* atom 3 of replica 2") as caught:
        simulation.run(None, state, 100)
    assert (caught.value.step, caught.value.atom, caught.value.replica) == (34, 3, 2)


def test_a_temperature_explosion_stops_the_run():
    """On top of a hill, x = x0 cosh(t): K = x0² sinh²(t) / 2 passes the limit at a known step."""

    def hill(params, system, graph):
        return -0.5 * jnp.sum(system.positions**2, axis=-1)

    system = make_system([[0.01, 0.0, 0.0], [0.0, 0.0, 0.0]], 1, masses=1.0)
    limit_kelvin = 5000.0
    simulation = Simulation(
        hill,
        nve(0.01, fixed_degrees=0),
        cutoff=2.0,
        every=10,
        min_distance=0.0,
        max_temperature_kelvin=limit_kelvin,
    )
    state = simulation.start(jax.random.key(0), None, system, momenta=jnp.zeros((2, 3)))
    with pytest.raises(SimulationError, match="atom 0 is the fastest") as caught:
        simulation.run(None, state, 2000)
    t = np.arcsinh(np.sqrt(2.0 * 3.0 * limit_kelvin * KELVIN) / 0.01)
    assert abs(caught.value.step - t / 0.01) < 2
    assert caught.value.temperature_kelvin > limit_kelvin


# --- interruptions


def test_a_run_in_a_directory_is_the_same_and_can_be_extended(tmp_path):
    simulation = argon(observe=pressures(lennard_jones))
    state = simulation.start(jax.random.key(0), ARGON, crystal(), replicas=2)
    plain = simulation.run(ARGON, state, 120)
    simulation.run(ARGON, state, 60, directory=tmp_path)
    assert_same(simulation.run(ARGON, state, 120, directory=tmp_path), plain)
    assert_same(
        argon(observe=pressures(lennard_jones)).run(ARGON, state, 120, directory=tmp_path),
        plain,
    )
    with pytest.raises(ValueError, match="at step 120 already"):
        simulation.run(ARGON, state, 100, directory=tmp_path)


class Killed(BaseException):
    pass


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """Cut before and after every write of a run whose list overflows on the way."""
    simulation = shared(20)
    state = simulation.start(jax.random.key(2), ARGON, crystal(), kT=6.0 * KT)
    tight = dataclasses.replace(state.plan, row_length=int(state.neighbors.longest_row))
    state = dataclasses.replace(state, plan=tight)
    expected = simulation.run(ARGON, state, 400)
    assert expected[0].plan != tight
    replace, calls = os.replace, 0

    def interrupted(source, target):
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise Killed
        replace(source, target)
        if calls % 3 == 0:
            raise Killed

    monkeypatch.setattr(os, "replace", interrupted)
    result, starts = None, 0
    while result is None:
        starts += 1
        try:
            result = simulation.run(ARGON, state, 400, directory=tmp_path / "run")
        except Killed:
            continue
    assert starts > 3
    assert_same(result, expected)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    simulation = shared()
    state = simulation.start(jax.random.key(0), ARGON, crystal())
    expected = simulation.run(ARGON, state, 100)
    fsync, calls = os.fsync, 0

    def full(descriptor):
        nonlocal calls
        calls += stat.S_ISREG(os.fstat(descriptor).st_mode)
        if calls > 6:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="Free some space"):
            simulation.run(ARGON, state, 100, directory=tmp_path / "run")
    assert_same(simulation.run(ARGON, state, 100, directory=tmp_path / "run"), expected)


def test_a_damaged_checkpoint_costs_one_chunk(tmp_path):
    simulation = shared()
    state = simulation.start(jax.random.key(0), ARGON, crystal())
    simulation.run(ARGON, state, 80, directory=tmp_path)
    newest = max((tmp_path / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    content[-20] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        result = simulation.run(ARGON, state, 100, directory=tmp_path)
    assert_same(result, simulation.run(ARGON, state, 100))


def test_missing_frames_are_noticed(tmp_path):
    simulation = shared()
    state = simulation.start(jax.random.key(0), ARGON, crystal())
    simulation.run(ARGON, state, 80, directory=tmp_path)
    min((tmp_path / "frames").iterdir()).unlink()
    with pytest.raises(ValueError, match="lacks frames before step 80"):
        simulation.run(ARGON, state, 100, directory=tmp_path)


def test_another_run_in_the_same_directory_is_refused(tmp_path):
    simulation = shared()
    state = simulation.start(jax.random.key(0), ARGON, crystal())
    simulation.run(ARGON, state, 20, directory=tmp_path / "run")

    def refused(simulation, state, params, *messages):
        with pytest.raises(ValueError, match="belongs to another run") as caught:
            simulation.run(params, state, 20, directory=tmp_path / "run")
        for message in messages:
            assert message in str(caught.value)

    other = argon(langevin(0.5 * TIMESTEP, 1.0 / PICOSECOND, KT), skin=0.5)
    refused(other, state, ARGON, "`integrator.timestep` is", "`skin` is 1.0 there and 0.5 here")
    refused(simulation, state, ARGON | {"sigma": jnp.asarray(3.3)}, "`params.sigma` differs")
    moved = simulation.start(jax.random.key(1), ARGON, crystal())
    refused(simulation, moved, ARGON, "`start.state.momenta` differs")

    def weaker(params, system, graph):
        return 0.9 * lennard_jones(params, system, graph)

    simulation = Simulation(weaker, simulation.integrator, cutoff=CUTOFF, every=5, chunk_frames=4)
    refused(simulation, state, ARGON, "`start.energy` is")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"not empty and has no run\.json"):
        simulation.run(ARGON, state, 20, directory=tmp_path / "notes")
