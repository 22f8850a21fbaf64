"""The contract tests pass a sound potential and catch one with each fault."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel import testing
from mosaicmd.kernel.graphs import edge_vectors, host_graph, sum_edges
from mosaicmd.kernel.potentials import Potential, total_energy
from mosaicmd.kernel.testing import in_rows, random_orthogonal, random_system

CUTOFF = 4.0  # Å
PARAMS = {"strength": jnp.array(2.0)}  # eV
SYSTEM = random_system(3, n_atoms=10)


def make(energy):
    return Potential(
        architecture=energy.__name__,
        config={},
        init=lambda key: PARAMS,
        energy=energy,
        cutoff=CUTOFF,
    )


def bump(system, graph, power=3.0):
    """``(1 - (r / cutoff)^2)^power`` per edge: `power - 1` continuous derivatives."""
    squared = jnp.sum(edge_vectors(system, graph) ** 2, axis=-1) / CUTOFF**2
    return jnp.where(squared < 1.0, 1.0 - squared, 0.0) ** power


def sound(params, system, graph):
    """A pair term and a term nonlinear in the neighborhood, with all the virtues."""
    weight = jnp.where(system.species == 1, 1.0, 1.5).astype(system.positions.dtype)
    density = sum_edges(bump(system, graph) * weight[graph.senders], graph, system.n_atoms)
    return params["strength"] * (0.5 * density + 0.1 * density**2)


def prefers_x(params, system, graph):
    x = edge_vectors(system, graph)[:, 0]
    return sound(params, system, graph) + 1e-6 * sum_edges(
        bump(system, graph) * x**2, graph, system.n_atoms
    )


def has_a_hand(params, system, graph):
    """Triple products of neighbors: a rotation leaves them, a reflection flips their sign."""
    vectors, weight = edge_vectors(system, graph), bump(system, graph)
    a, b, c = (
        sum_edges((weight**power)[:, None] * vectors, graph, system.n_atoms) for power in (1, 2, 3)
    )
    return sound(params, system, graph) + 1e-3 * jnp.sum(jnp.cross(a, b) * c, axis=-1)


def knows_the_origin(params, system, graph):
    return sound(params, system, graph) + 1e-6 * system.positions[:, 0] * system.mask


def knows_the_order(params, system, graph):
    return sound(params, system, graph) * (1.0 + 1e-6 * jnp.arange(system.n_atoms))


def counts_shifts(params, system, graph):
    shifts = jnp.sum(graph.shifts**2, axis=-1) * bump(system, graph)
    return sound(params, system, graph) + 1e-6 * sum_edges(shifts, graph, system.n_atoms)


def knows_the_first_cell_vector(params, system, graph):
    return sound(params, system, graph) + 1e-6 * jnp.linalg.norm(system.cell[0]) * system.mask


def counts_every_atom_for_all(params, system, graph):
    return jnp.sum(sound(params, system, graph)) * system.mask


def is_not_size_consistent(params, system, graph):
    energies = sound(params, system, graph)
    return energies / jnp.sqrt(jnp.sum(system.mask))


@jax.custom_vjp
def flip(x):
    return x


flip.defvjp(lambda x: (x, None), lambda _, cotangent: (-cotangent,))


def pushes_where_it_should_pull(params, system, graph):
    return flip(sound(params, system, graph))


def forgets_the_reaction(params, system, graph):
    held = system._replace(positions=jax.lax.stop_gradient(system.positions))
    return 0.5 * (sound(params, system, graph) + sound(params, held, graph))


def forgets_the_cell(params, system, graph):
    held = system._replace(cell=jax.lax.stop_gradient(system.cell))
    return sound(params, held, graph)


def cut_off(params, system, graph):
    squared = jnp.sum(edge_vectors(system, graph) ** 2, axis=-1)
    pair = jnp.where(squared < CUTOFF**2, 1.0 / squared, 0.0)
    return params["strength"] * 0.5 * sum_edges(pair, graph, system.n_atoms)


def ends_in_a_corner(params, system, graph):
    return params["strength"] * sum_edges(bump(system, graph, 1.0), graph, system.n_atoms)


def ends_in_a_parabola(params, system, graph):
    return params["strength"] * sum_edges(bump(system, graph, 2.0), graph, system.n_atoms)


def has_a_kink(params, system, graph):
    distances = jnp.sqrt(jnp.sum(edge_vectors(system, graph) ** 2, axis=-1))
    kink = bump(system, graph) * jnp.where(distances > 3.3, distances - 3.3, 0.0) ** 2
    return sound(params, system, graph) + 0.1 * sum_edges(kink, graph, system.n_atoms)


def counts_padding_edges(params, system, graph):
    edges = sum_edges(jnp.ones(graph.n_edges), graph, system.n_atoms)
    return sound(params, system, graph) + 1e-6 * edges * system.mask


def has_a_constant_for_all(params, system, graph):
    return sound(params, system, graph) + params["strength"] * jnp.ones(system.n_atoms)


def sees_masked_atoms(params, system, graph):
    """The mean position leaks into every energy."""
    mean = jax.lax.stop_gradient(jnp.mean(system.positions, axis=0, keepdims=True))
    apart = jnp.sum((system.positions - mean) ** 2, axis=-1)
    return sound(params, system, graph) + 1e-6 * apart * system.mask


def has_no_length_for_padding(params, system, graph):
    """Padding edges join an atom to itself, where a distance has no derivative."""
    vectors = system.positions[graph.senders] - system.positions[graph.receivers]
    distances = jnp.sqrt(jnp.sum((vectors + graph.shifts @ system.cell) ** 2, axis=-1))
    pair = jnp.where(graph.mask, distances, 0.0) * bump(system, graph)
    return params["strength"] * sum_edges(pair, graph, system.n_atoms)


def has_a_bad_gradient_in_params(params, system, graph):
    root = jnp.sqrt(params["strength"] * bump(system, graph, 6.0))
    return sum_edges(root, graph, system.n_atoms)


def computes_in_double(params, system, graph):
    return sound(params, system, graph) * np.ones(1)


def loses_digits(params, system, graph):
    return 1e5 * jnp.log(1.0 + 1e-5 * sound(params, system, graph))


def is_one_number(params, system, graph):
    return jnp.sum(sound(params, system, graph))


def stops_at_reverse(params, system, graph):
    if graph.reverse is None:
        return sound(params, system, graph)
    return forgets_the_reaction(params, system, graph)


@jax.custom_vjp
def straight(x):
    return x**2


def straight_backward(x, cotangent):
    return (2.0 * jax.lax.stop_gradient(x) * cotangent,)


straight.defvjp(lambda x: (x**2, x), straight_backward)


def loses_its_curvature_in_rows(params, system, graph):
    square = straight if graph.row_length is not None else jnp.square
    return square(sound(params, system, graph))


def needs_an_exact_list(params, system, graph):
    squared = jnp.sum(edge_vectors(system, graph) ** 2, axis=-1) / CUTOFF**2
    pair = jnp.where(graph.mask, (1.0 - squared) ** 4, 0.0)
    return params["strength"] * 0.5 * sum_edges(pair, graph, system.n_atoms)


@jax.custom_batching.custom_vmap
def unmixed(x):
    return x


@unmixed.def_vmap
def first_for_all(axis_size, in_batched, x):
    return jnp.broadcast_to(x[:1], x.shape), True


@jax.custom_vjp
def mixed(x):
    return unmixed(x)


mixed.defvjp(lambda x: (unmixed(x), None), lambda _, cotangent: (cotangent,))


def mixes_the_batch(params, system, graph):
    return mixed(sound(params, system, graph))


def is_not_a_number(params, system, graph):
    return sound(params, system, graph) / 0.0 * 0.0


FAULTS = [
    ("rotation", prefers_x, "a rotation changes energies"),
    ("rotation", has_a_hand, "a reflection changes energies"),
    ("translation", knows_the_origin, "a translation changes energies"),
    ("permutation", knows_the_order, "a permutation of the atoms changes energies"),
    ("periodic_images", counts_shifts, "moving atoms by lattice vectors changes energies"),
    ("periodic_images", knows_the_first_cell_vector, "choosing other vectors"),
    ("extensivity", counts_every_atom_for_all, "2x1x1 times changes energies"),
    ("extensivity", is_not_size_consistent, "2x1x1 times changes energies"),
    ("forces", pushes_where_it_should_pull, "forces differ from the finite differences"),
    ("forces", forgets_the_reaction, "forces differ from the finite differences"),
    ("stress", forgets_the_cell, "stress differs from the finite differences"),
    ("smoothness", cut_off, r"derivative 0 .* jumps by .* at 4.000000 Å"),
    ("smoothness", ends_in_a_corner, r"derivative 1 .* jumps by .* at 4.000000 Å"),
    ("smoothness", ends_in_a_parabola, r"derivative 2 .* jumps by .* at 4.000000 Å"),
    ("smoothness", has_a_kink, r"derivative 2 .* jumps by .* at 3.300000 Å"),
    ("padding", counts_padding_edges, "padding the edges changes energies"),
    ("padding", has_a_constant_for_all, "padding atoms have energies"),
    ("padding", sees_masked_atoms, "padding atoms and edges changes energies"),
    ("padding", has_no_length_for_padding, "padding the edges changes forces by nan"),
    ("padding", has_a_bad_gradient_in_params, "nan"),
    ("precision", computes_in_double, "energies of a float32 system are float64"),
    ("precision", loses_digits, "float32 changes energies"),
    ("atom_energies", is_one_number, "energies have shape"),
    ("atom_energies", has_a_constant_for_all, "masked atoms have energies"),
    ("atom_energies", sees_masked_atoms, "masking an atom"),
    ("graph_layouts", stops_at_reverse, "a graph with `reverse` changes forces"),
    ("graph_layouts", loses_its_curvature_in_rows, "a graph in rows changes the second deriv"),
    ("longer_list", needs_an_exact_list, "a list longer than the cutoff changes energies"),
    ("batch", mixes_the_batch, "a batch changes"),
    ("translation", is_not_a_number, "a translation changes energies by nan"),
]


@pytest.mark.parametrize(
    ("name", "energy", "message"), FAULTS, ids=lambda x: getattr(x, "__name__", x)
)
def test_fault_is_caught(name, energy, message):
    check = getattr(testing, f"check_{name}")
    with pytest.raises(AssertionError, match=message) as caught:
        check(make(energy), PARAMS, SYSTEM)
    assert energy.__name__ in str(caught.value)


@pytest.mark.parametrize("pbc", [True, False, (True, True, False)], ids=str)
def test_sound_potential_passes(pbc):
    system = random_system(1, pbc=pbc, charges=True)
    measured = testing.check_potential(make(sound), PARAMS, system)
    expected = {name.removeprefix("check_") for name in testing.__all__ if "check" in name}
    expected -= {"potential"} | (set() if pbc is True else {"stress"})
    assert set(measured) == expected - (set() if pbc else {"periodic_images"})
    assert 0.0 < max(measured.values()) < 1e-4


def test_every_check_has_a_fault():
    checks = {name.removeprefix("check_") for name in testing.__all__ if "check" in name}
    assert {name for name, *_ in FAULTS} == checks - {"potential"}


@pytest.mark.parametrize(
    ("energy", "order"), [(cut_off, -1), (ends_in_a_corner, 0), (ends_in_a_parabola, 1)]
)
def test_less_smooth_potentials_can_be_declared(energy, order):
    assert testing.check_smoothness(make(energy), PARAMS, SYSTEM, order=order) < 1e-7


def test_truncated_potential_passes_what_it_can():
    measured = testing.check_potential(make(cut_off), PARAMS, SYSTEM, order=-1)
    assert measured["smoothness"] == 0.0


def test_deviations_are_of_the_size_that_rounding_and_differences_leave():
    """Central differences of step h err by h²/6 E''': here about 1e-9 of the forces."""
    args = (make(sound), PARAMS, SYSTEM)
    assert testing.check_rotation(*args) < 1e-13
    assert testing.check_forces(*args) < 1e-8
    assert testing.check_stress(*args) < 1e-8
    assert 1e-9 < testing.check_precision(*args) < 1e-5


def test_padded_systems_can_be_checked():
    from mosaicmd.kernel.systems import pad_system

    args = (make(sound), PARAMS, pad_system(SYSTEM, 16))
    testing.check_forces(*args)
    testing.check_permutation(*args)
    testing.check_atom_energies(*args)


def test_unknown_species_are_named():
    potential = Potential(**{**vars(make(sound)), "species": (1, 6)})
    with pytest.raises(ValueError, match=r"\[8\]"):
        testing.check_potential(potential, PARAMS, SYSTEM)


def test_stress_and_images_need_periodic_directions():
    free = random_system(0, pbc=False)
    with pytest.raises(ValueError, match="periodic in three directions"):
        testing.check_stress(make(sound), PARAMS, free)
    with pytest.raises(ValueError, match="no periodic direction"):
        testing.check_periodic_images(make(sound), PARAMS, free)


def test_single_precision_mode_is_refused():
    with jax.enable_x64(False), pytest.raises(RuntimeError, match="jax_enable_x64"):
        testing.check_translation(make(sound), PARAMS, SYSTEM)


def test_random_systems_are_what_they_say():
    system = random_system(5, n_atoms=20, species=(14, 6, 8), min_distance=2.0, charges=True)
    again = random_system(5, n_atoms=20, species=(14, 6, 8), min_distance=2.0, charges=True)
    other = random_system(6, n_atoms=20, species=(14, 6, 8), min_distance=2.0, charges=True)
    np.testing.assert_array_equal(system.positions, again.positions)
    assert not np.allclose(system.positions, other.positions)
    assert set(np.asarray(system.species).tolist()) == {6, 8, 14}
    assert system.positions.dtype == np.float64
    assert system.charges is not None
    np.testing.assert_allclose(np.linalg.det(system.cell), 20 * 20.0, rtol=1e-12)
    np.testing.assert_allclose(np.sum(system.charges), 0.0, atol=1e-12)
    assert np.abs(np.asarray(system.cell)[np.tril_indices(3, -1)]).min() > 1e-3  # triclinic
    graph = host_graph(system, 4.0)
    distances = np.linalg.norm(np.asarray(edge_vectors(system, graph)), axis=1)
    assert 2.0 <= distances.min() < 2.5


def test_too_dense_a_random_system_is_refused():
    with pytest.raises(ValueError, match="reduce `min_distance`"):
        random_system(0, min_distance=3.0, n_atoms=8)


def test_random_orthogonal_matrices():
    rng = np.random.default_rng(0)
    for determinant in (1.0, -1.0):
        matrix = random_orthogonal(rng, determinant)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-14)
        np.testing.assert_allclose(np.linalg.det(matrix), determinant, rtol=1e-12)


def test_rows_hold_the_same_edges():
    graph = host_graph(SYSTEM, CUTOFF, reverse=True)
    rows = in_rows(graph, SYSTEM.n_atoms)
    keep = np.asarray(rows.mask)
    for name in ("senders", "receivers", "shifts"):
        np.testing.assert_array_equal(getattr(rows, name)[keep], getattr(graph, name))
    assert rows.reverse is not None
    assert rows.row_length is not None
    np.testing.assert_array_equal(rows.receivers, np.arange(rows.n_edges) // rows.row_length)
    np.testing.assert_array_equal(rows.senders[rows.reverse][keep], graph.receivers)
    np.testing.assert_array_equal(rows.reverse[~keep], np.flatnonzero(~keep))
    np.testing.assert_allclose(
        total_energy(sound, PARAMS, SYSTEM, rows),
        total_energy(sound, PARAMS, SYSTEM, graph),
        rtol=1e-14,
    )
    with pytest.raises(ValueError, match="reverse=True"):
        in_rows(host_graph(SYSTEM, CUTOFF), SYSTEM.n_atoms)
