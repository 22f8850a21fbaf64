"""What every member must have, and what no tracked file may hold."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECTS = [*sorted(ROOT.glob("shared/*/pyproject.toml")), *sorted(ROOT.glob("packages/*/*.toml"))]
MEMBERS = [path.parent for path in PROJECTS]
JAX = Requirement("jax>=0.10.1,!=0.10.2,!=0.11.0,!=0.11.1").specifier
MACHINE_PATH = re.compile(r"(?<![\w.~>}$])/(root|home|Users|work|private/var)/\w")
MEBIBYTE = 2**20


def project(member: Path) -> dict:
    return tomllib.loads((member / "pyproject.toml").read_text())["project"]


def requirements(member: Path) -> list[Requirement]:
    table = project(member)
    tables = [table["dependencies"], *table["optional-dependencies"].values()]
    return [Requirement(text) for texts in tables for text in texts]


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_all_eight_members_are_here():
    assert [member.name for member in MEMBERS] == [
        "kernel",
        "bayes-uq",
        "difftre",
        "gnn-models",
        "led-dynamics",
        "qeq-longrange",
        "resolv",
        "transfer",
    ]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_member_is_complete(member):
    table = project(member)
    package = member / "src" / "mosaicmd" / member.name.replace("-", "_")
    assert table["name"] == f"mosaicmd-{member.name}"
    assert table["requires-python"] == ">=3.11"
    assert table["license"] == "Apache-2.0"
    assert (package / "py.typed").is_file()
    assert '"""' in (package / "__init__.py").read_text()
    assert (member / "README.md").read_text().startswith(f"# {table['name']}\n")
    assert "\n## Unreleased\n" in (member / "CHANGELOG.md").read_text()
    assert list((member / "tests").glob("test_*.py"))
    assert f"`mosaicmd-{member.name}`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_member_pins_jax_and_admits_its_siblings(member):
    needed = requirements(member)
    jax = [requirement for requirement in needed if requirement.name in {"jax", "jaxlib"}]
    assert jax
    for requirement in jax:
        assert requirement.specifier == JAX
        assert not requirement.extras
    versions = {f"mosaicmd-{sibling.name}": project(sibling)["version"] for sibling in MEMBERS}
    for requirement in needed:
        if requirement.name.startswith("mosaicmd-"):
            assert requirement.specifier.contains(versions[requirement.name])


def test_no_tracked_file_names_a_path_of_one_machine():
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image
        found += [f"{path}: {line}" for line in text.splitlines() if MACHINE_PATH.search(line)]
    assert found == []


@pytest.mark.parametrize("folder", ["root", "home", "Users", "work"])
def test_the_search_for_machine_paths_sees(folder):
    assert MACHINE_PATH.search(f"open('/{folder}/somebody/file')")
    assert not MACHINE_PATH.search(f"packages/{folder}/file")


def test_no_tracked_file_is_data():
    assert [str(path) for path in tracked() if path.stat().st_size > MEBIBYTE] == []


def test_continuous_integration_runs_the_command_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python3 -m venv .*$", readme, re.MULTILINE)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_links_between_documents_lead_somewhere():
    missing = []
    for path in tracked():
        if path.suffix == ".md":
            for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text()):
                if not (path.parent / target).exists():
                    missing.append(f"{path.relative_to(ROOT)}: {target}")
    assert missing == []
