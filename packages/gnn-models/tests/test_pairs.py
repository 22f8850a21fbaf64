"""Edges find the parameters of their pair of species, whatever the order of the labels."""

import numpy as np
import pytest

from mosaicmd.gnn_models.pairs import check_species, pair_index, per_pair, species_pairs
from mosaicmd.kernel.graphs import host_graph
from mosaicmd.kernel.systems import pad_system
from mosaicmd.kernel.testing import random_system


@pytest.mark.parametrize("species", [(8,), (1, 8), (8, 1), (14, 1, 8), (6, 14, 1, 8)])
def test_index_names_the_pair_of_every_edge(species):
    system = random_system(0, species=species)
    graph = host_graph(system, 5.0)
    pairs = species_pairs(species)
    index = np.asarray(pair_index(species, system, graph))
    labels = np.asarray(system.species)
    for pair, sender, receiver in zip(index, graph.senders, graph.receivers, strict=True):
        assert sorted(pairs[pair]) == sorted([labels[sender], labels[receiver]])
    assert set(index.tolist()) == set(range(len(pairs)))


def test_masked_atoms_get_a_valid_index():
    system = pad_system(random_system(0, species=(6, 14)), 32)
    graph = host_graph(system, 5.0)
    masked = graph.__class__(**{**vars(graph), "senders": graph.senders * 0 + 31})
    index = np.asarray(pair_index((6, 14), system, masked))
    assert index.min() >= 0
    assert index.max() < 3


def test_one_value_serves_every_pair():
    assert per_pair("sigma", 2.5, None) == 2.5
    assert per_pair("sigma", 2.5, (1, 8)) == (2.5, 2.5, 2.5)
    assert per_pair("sigma", (1.0, 2.0, 3.0), (1, 8)) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("value", "species", "message"),
    [
        (0.0, None, "`sigma` must be positive"),
        ((1.0, -1.0, 1.0), (1, 8), "`sigma` must be positive"),
        ((1.0, 2.0), None, "give `species`"),
        ((1.0, 2.0), (1, 8), "2 values for 3 pairs"),
    ],
)
def test_values_that_do_not_fit_are_refused(value, species, message):
    with pytest.raises(ValueError, match=message):
        per_pair("sigma", value, species)


@pytest.mark.parametrize("species", [(), (1, 1), (0, 2)])
def test_labels_that_do_not_fit_are_refused(species):
    with pytest.raises(ValueError, match="`species` must be distinct positive labels"):
        check_species(species)
