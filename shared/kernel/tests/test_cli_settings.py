"""Settings of the command line: data files, splits, optimisers, schedules, frozen parameters."""

import numpy as np
import optax
import pytest
from cli_runs import SETTINGS, write_data

from mosaicmd.kernel.cli.labelled_files import read_labelled, read_splits
from mosaicmd.kernel.cli.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    build_optimizer,
    build_schedule,
    frozen_leaves,
)
from mosaicmd.kernel.cli.training_config import (
    DataConfig,
    DataFile,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
)
from mosaicmd.kernel.config import ConfigError, load_config

PARAMS = {
    "a": {"w": np.ones(3), "b": np.zeros(2)},
    "layers": ({"w": np.ones(2)}, {"w": np.ones(2)}),
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 3}, "give either `epochs` or `steps`"),
        ({"potential": None}, "give either `potential` or `init_from`"),
        ({"potential": []}, "needs at least one term"),
        ({"reference_energies": "keep"}, "can be kept only with `init_from`"),
        ({"data": {"train": "a", "validation": 0.6, "test": 0.5}}, "leave something to train on"),
        ({"data": {"train": "a", "validation": 0}, "patience": 3}, "`patience` needs structures"),
    ],
)
def test_settings_that_contradict_each_other_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        load_config(TrainingConfig, SETTINGS | changes)


def test_short_forms_are_the_long_ones():
    config = load_config(
        TrainingConfig, SETTINGS | {"data": {"train": ["a.xyz", {"path": "b.xyz"}]}}
    )
    assert config.data.train == (DataFile(path="a.xyz"), DataFile(path="b.xyz"))
    assert config.potential is not None
    assert config.potential[0].architecture == "pair"
    assert load_config(TrainingConfig, config.model_dump(mode="json")) == config


def test_splits_are_disjoint_complete_and_follow_the_seed(tmp_path):
    path = write_data(tmp_path / "all.extxyz")
    config = DataConfig(train=(DataFile(path=path),), validation=0.25, test=0.17)

    def energies(seed):
        splits = read_splits(config, seed)
        return {name: [labels.energy for _, labels in data] for name, data in splits.items()}

    first = energies(0)
    assert {name: len(values) for name, values in first.items()} == {
        "train": 7,
        "validation": 3,
        "test": 2,
    }
    assert len({energy for values in first.values() for energy in values}) == 12
    assert energies(0) == first
    assert energies(1) != first
    with pytest.raises(ConfigError, match=r"0.01 of 12 structures is none"):
        read_splits(config.model_copy(update={"test": 0.01}), 0)


def test_columns_that_look_like_labels_are_read_or_named(tmp_path):
    path = write_data(tmp_path / "all.extxyz", REF_charges=1.0, dft_energy=2.0)
    with pytest.raises(ConfigError, match="`REF_charges` that looks like `charges`"):
        read_labelled(DataFile(path=path))
    assert len(read_labelled(DataFile(path=path, ignore=("REF_charges",)))) == 12
    with pytest.raises(ConfigError, match="no column \\['charge'\\] to ignore"):
        read_labelled(DataFile(path=path, ignore=("charge",)))
    arrays = tmp_path / "all.npz"
    n_frames = 2
    np.savez(
        arrays,
        positions=np.arange(n_frames * 6.0).reshape(n_frames, 2, 3),
        numbers=[1, 8],
        my_gradients=np.ones((n_frames, 2, 3)),
    )
    with pytest.raises(ConfigError, match=r"`names: \{forces: -my_gradients\}`"):
        read_labelled(DataFile(path=arrays))
    found = read_labelled(DataFile(path=arrays, names={"forces": "-my_gradients"}))
    np.testing.assert_array_equal(found[0][1].forces, -np.ones((2, 3)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_can_be_built(name):
    optimizer = build_optimizer(OptimizerConfig(name=name), 10, PARAMS)
    assert optimizer.init(PARAMS) is not None


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_starts_or_peaks_at_the_learning_rate(name):
    options = {
        "exponential_decay": {"decay_rate": 0.1},
        "linear_schedule": {"end_value": 0.0},
        "piecewise_constant_schedule": {"boundaries_and_scales": {50: 0.1}},
        "polynomial_schedule": {"end_value": 0.0, "power": 2},
        "warmup_constant_schedule": {"warmup_steps": 5},
        "warmup_cosine_decay_schedule": {"warmup_steps": 5},
        "warmup_exponential_decay_schedule": {"warmup_steps": 5, "decay_rate": 0.1},
    }
    config = ScheduleConfig(name=name, options=options.get(name, {}))
    schedule = build_schedule(config, 0.02, 100)
    rates = np.array([float(schedule(step)) for step in range(101)])
    assert rates.max() == pytest.approx(0.02, rel=1e-6)
    if name not in ("constant_schedule", "warmup_constant_schedule"):
        assert rates[-1] < 0.003


def test_a_schedule_is_that_of_optax():
    found = build_schedule(
        ScheduleConfig(name="exponential_decay", options={"decay_rate": 0.5}), 0.1, 10
    )
    wanted = optax.exponential_decay(0.1, 10, 0.5)
    assert [float(found(i)) for i in range(20)] == [float(wanted(i)) for i in range(20)]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "adamm"}, "did you mean `adam"),
        ({"options": {"bb2": 0.9}}, "adam has no option 'bb2' \\(did you mean `b2`"),
        ({"options": {"learning_rate": 0.9}}, "give `learning_rate` beside `name`"),
        ({"schedule": {"name": "cosine_decy"}}, "did you mean `cosine_decay`"),
        ({"schedule": {"name": "linear"}}, "linear_schedule needs end_value"),
        ({"name": "lbfgs", "schedule": {"name": "cosine_decay"}}, "lbfgs searches along its own"),
    ],
)
def test_unknown_names_and_options_are_named(config, words):
    with pytest.raises(ConfigError, match=words):
        build_optimizer(load_config(OptimizerConfig, config), 10, PARAMS)


def test_frozen_parameters_do_not_move_and_do_not_count_for_clipping():
    held = frozen_leaves(PARAMS, ["layers/0", "a/*b"])
    assert held == {"a": {"w": False, "b": True}, "layers": ({"w": True}, {"w": False})}
    optimizer = build_optimizer(
        OptimizerConfig(name="sgd", learning_rate=1.0),
        10,
        PARAMS,
        max_gradient_norm=1.0,
        freeze=["layers/0", "a/b"],
    )
    huge = {"a": {"w": np.full(3, 0.1), "b": np.full(2, 1e6)}, "layers": PARAMS["layers"]}
    huge["layers"] = ({"w": np.full(2, 1e6)}, {"w": np.full(2, 0.1)})
    change, _ = optimizer.update(huge, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(change["a"]["w"], -0.1)
    np.testing.assert_allclose(change["layers"][1]["w"], -0.1)
    np.testing.assert_array_equal(change["a"]["b"], 0.0)
    np.testing.assert_array_equal(change["layers"][0]["w"], 0.0)
    with pytest.raises(ConfigError, match="match every parameter"):
        frozen_leaves(PARAMS, ["*"])
