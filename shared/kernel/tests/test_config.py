"""Settings: what loads, and that what does not load says which field, why and what to do."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from mosaicmd.kernel.config import Config, ConfigError, Length, Time, load_config, suggest


class Dynamics(Config):
    timestep_fs: Time = 2.0
    n_steps: int = Field(default=100, gt=0)


class Spline(Config):
    kind: Literal["spline"] = "spline"
    n_knots: int = 40


class LennardJones(Config):
    kind: Literal["lennard_jones"] = "lennard_jones"
    sigma: Length = 3.0


class Settings(Config):
    name: str
    cutoff: Length = 6.0
    dynamics: Dynamics = Dynamics()
    stages: tuple[Dynamics, ...] = ()
    term: Annotated[Spline | LennardJones, Field(discriminator="kind")] = Spline()


def complaint(source, **overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(Settings, source, overrides)
    return str(caught.value)


def test_yaml_and_json_files_give_the_same_settings(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "name: water\ncutoff: 0.5 nm\ndynamics: {timestep_fs: 0.01 ps, n_steps: 7}\n"
    )
    (tmp_path / "a.json").write_text(
        '{"name": "water", "cutoff": "0.5 nm", "dynamics": {"timestep_fs": 10, "n_steps": 7}}'
    )
    expected = Settings(name="water", cutoff=5.0, dynamics=Dynamics(timestep_fs=10.0, n_steps=7))
    assert load_config(Settings, tmp_path / "a.yaml") == expected
    assert load_config(Settings, str(tmp_path / "a.json")) == expected


def test_settings_survive_their_own_json():
    settings = load_config(Settings, {"name": "x", "cutoff": "1 bohr", "term": {"kind": "spline"}})
    assert load_config(Settings, settings.model_dump(mode="json")) == settings


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Settings(name="x").cutoff = 3.0  # pyright: ignore[reportAttributeAccessIssue]


def test_exponent_without_a_point_is_a_number_in_yaml(tmp_path):
    class Learning(Config):
        rate: float | str

    (tmp_path / "a.yaml").write_text("rate: 1e-3\n")
    assert load_config(Learning, tmp_path / "a.yaml").rate == 1e-3


def test_overrides_reach_nested_fields_and_keep_their_neighbors():
    source = {"name": "x", "dynamics": {"timestep_fs": 5.0, "n_steps": 9}}
    settings = load_config(Settings, source, {"dynamics.timestep_fs": "1 ps", "name": "y"})
    assert settings.dynamics == Dynamics(timestep_fs=1000.0, n_steps=9)
    assert settings.name == "y"
    assert load_config(Settings, source, {"dynamics": {"n_steps": 1}}).dynamics.timestep_fs == 5.0
    assert source == {"name": "x", "dynamics": {"timestep_fs": 5.0, "n_steps": 9}}


def test_override_below_a_plain_value_names_it():
    assert "`name` is 'x', which has no fields" in complaint({"name": "x"}, **{"name.first": 1})


@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        ({"name": "x", "cutof": 5.0}, ["cutof: unknown key", "did you mean `cutoff`?"]),
        (
            {"name": "x", "dynamics": {"timestp_fs": 1.0}},
            ["dynamics.timestp_fs: unknown key", "did you mean `timestep_fs`?"],
        ),
        (
            {"name": "x", "stages": [{}, {"nsteps": 1}]},
            ["stages.1.nsteps: unknown key", "did you mean `n_steps`?"],
        ),
        (
            {"name": "x", "term": {"kind": "lennard_jones", "sigmaa": 1.0}},
            ["sigmaa: unknown key", "did you mean `sigma`?"],
        ),
        ({}, ["name: is required"]),
        (
            {"name": "x", "dynamics": {"n_steps": -3}},
            ["dynamics.n_steps: got -3", "greater than 0"],
        ),
        (
            {"name": "x", "dynamics": {"timestep_fs": "0.5 nm"}},
            [
                "dynamics.timestep_fs: got '0.5 nm'",
                "is a length",
                "a time",
                "number in fs",
                '"1.5 fs"',
            ],
        ),
        ({"name": "x", "cutoff": float("nan")}, ["cutoff: got nan", "not finite"]),
    ],
)
def test_error_names_field_value_and_remedy(settings, fragments):
    message = complaint(settings)
    for fragment in fragments:
        assert fragment in message


def test_one_error_lists_every_problem():
    message = complaint({"cutof": 5.0, "dynamics": {"n_steps": "many"}})
    assert message.startswith("settings of Settings have 3 problems")
    assert message.count("\n") == 3


@pytest.mark.parametrize(
    ("name", "text", "fragment"),
    [
        ("a.yaml", "name: x\ncutoff: 5\nname: y\n", "'name' stands twice (line 3)"),
        ("a.json", '{"name": "x", "name": "y"}', "'name' stands twice"),
        ("a.yaml", "name: [x\n", "not valid YAML"),
        ("a.json", "{", "not valid JSON"),
        ("a.yaml", "- name\n", "holds a list"),
        ("a.yaml", "name: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_unreadable_file_names_itself_and_its_fault(tmp_path, name, text, fragment):
    (tmp_path / name).write_text(text)
    message = complaint(tmp_path / name)
    assert str(tmp_path / name) in message
    assert fragment in message


def test_missing_file_suggests_a_neighbor(tmp_path):
    (tmp_path / "quick.yaml").write_text("name: x\n")
    assert "did you mean `quick.yaml`?" in complaint(tmp_path / "quik.yaml")


def test_empty_file_gives_the_defaults(tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert load_config(Dynamics, tmp_path / "a.yaml") == load_config(Dynamics) == Dynamics()


def test_suggest_finds_the_nearest_name_or_stays_silent():
    assert suggest("Quik", ["quick", "full"]) == " (did you mean `quick`?)"
    assert suggest("zebra", ["quick", "full"]) == ""
