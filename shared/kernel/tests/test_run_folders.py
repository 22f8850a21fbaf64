"""Settings from presets and files, and the folders that belong to them."""

import pytest

from mosaicmd.kernel.config import Config, ConfigError, Time
from mosaicmd.kernel.run_folders import claim, settings_and_folder


class Settings(Config):
    seed: int
    length_ps: Time = 1.0


@pytest.fixture
def presets(tmp_path):
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "quick.yaml").write_text("seed: 1\nlength_ps: 2 ns\n")
    return folder


def test_a_preset_gets_its_own_folder(presets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings, out = settings_and_folder(Settings, presets, preset="quick", name="water")
    assert settings == Settings(seed=1, length_ps=2000.0)
    assert out.as_posix() == "runs/water-quick"
    again, same = settings_and_folder(Settings, out, preset="config", out=out)
    assert (again, same) == (settings, out)  # what is recorded is settings as well


def test_a_file_takes_the_place_of_a_preset(presets, tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 5\n")
    settings, out = settings_and_folder(
        Settings, presets, preset="quick", config=tmp_path / "mine.yaml", out=tmp_path / "out"
    )
    assert (settings.seed, out) == (5, tmp_path / "out")


def test_a_folder_keeps_to_its_settings(presets, tmp_path):
    settings_and_folder(Settings, presets, preset="quick", out=tmp_path / "out")
    before = (tmp_path / "out" / "config.yaml").read_text()
    (presets / "quick.yaml").write_text("seed: 2\n")
    with pytest.raises(ConfigError, match=r"other settings \(different: seed, length_ps\)"):
        settings_and_folder(Settings, presets, preset="quick", out=tmp_path / "out")
    assert (tmp_path / "out" / "config.yaml").read_text() == before


def test_mistakes_are_named_and_make_no_folder(presets, tmp_path):
    with pytest.raises(ConfigError, match=r"no preset 'quik' \(did you mean `quick`"):
        settings_and_folder(Settings, presets, preset="quik", out=tmp_path / "out")
    (presets / "bad.yaml").write_text("sed: 2\n")
    with pytest.raises(ConfigError, match="did you mean `seed`"):
        settings_and_folder(Settings, presets, preset="bad", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_may_not_change_and_strange_folders_are_left_alone(tmp_path):
    data, out = tmp_path / "data.txt", tmp_path / "out"
    data.write_text("1")
    claim(out, Settings(seed=1), {"data": data})
    claim(out, Settings(seed=1), {"data": data})
    data.write_text("2")
    with pytest.raises(ConfigError, match="data changed since the run"):
        claim(out, Settings(seed=1), {"data": data})
    with pytest.raises(ConfigError, match="does not exist"):
        claim(out, Settings(seed=1), {"data": tmp_path / "none"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="holds no run"):
        claim(tmp_path / "mine", Settings(seed=1))
