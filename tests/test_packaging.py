"""Wheels, source distributions and editable installs: their files, what they say, and that they suffice."""

import email
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import mt
from mt.tests.test_demo import DEMO, small_pipeline

ROOT = Path(__file__).parents[1]
NOT_INSTALLED = {".ci", "benchmarks", "docs", "tests"}
# Builds run in a copy of the repository, because they write build/ and mt_lm.egg-info/ beside pyproject.toml.
BUILD = """
import json, sys
from setuptools import build_meta
print(json.dumps([getattr(build_meta, f"build_{kind}")(sys.argv[1]) for kind in sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """The files that git knows, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("this copy of the repository is not a git clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def installed(tracked) -> set[str]:
    """The files of an install of the package `mt`: modules, and data files beside them."""
    inside = [p for p in tracked if p.parts[0] not in NOT_INSTALLED]
    return {f"mt/{p}" for p in inside if len(p.parts) > 1 or p.suffix == ".py" or p.name == "py.typed"}


def build(folder: Path, output: Path, *kinds: str) -> list[Path]:
    """Builds wheel, sdist or editable wheel of a copy of the repository, without a network."""
    output.mkdir()
    command = [sys.executable, "-c", BUILD, str(output), *kinds]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [output / name for name in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def copy(tracked, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clone") / "mt"
    for path in tracked:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / path)
    return folder


def test_every_folder_with_modules_is_a_listed_package_and_every_data_file_is_package_data(tracked):
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    inside = [p for p in tracked if p.parts[0] not in NOT_INSTALLED]
    folders = {p.parent for p in inside if p.suffix == ".py" and p.parts[0] != "examples"}
    assert sorted(table["packages"]) == sorted(".".join(("mt", *f.parts)) for f in folders)
    assert all((ROOT / f / "__init__.py").exists() for f in folders)
    beside = [p for p in inside if len(p.parts) > 1 or p.name == "py.typed"]
    data = {str(p) for p in beside if not (p.suffix == ".py" and p.parent in folders)}
    listed = {
        str(path.relative_to(ROOT))
        for package, patterns in table["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
        if path.suffix != ".pyc" and path.is_file()
    }
    assert listed >= data
    assert listed & {str(p) for p in tracked} == data


def test_a_source_distribution_has_the_repository_and_its_wheel_has_the_package(
    copy, tracked, installed, tmp_path
):
    (sdist,) = build(copy, tmp_path / "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        files = {str(Path(*Path(m.name).parts[1:])) for m in archive.getmembers() if m.isfile()}
        archive.extractall(tmp_path / "unpacked", filter="data")
    added = {f for f in files if f.startswith("mt_lm.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert files - added == {str(p) for p in tracked}

    (unpacked,) = (tmp_path / "unpacked").iterdir()
    (wheel,) = build(unpacked, tmp_path / "wheel", "wheel")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == installed


def test_an_editable_install_imports_the_repository_and_finds_its_data_files(copy, tmp_path):
    (wheel,) = build(copy, tmp_path / "wheel", "editable")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import importlib.util, site, sys\n"
        "site.addsitedir(sys.argv[1])\n"
        "print(importlib.util.find_spec('mt.train.model.gpt').origin)\n"
        "print(importlib.util.find_spec('mt.dataprep.filters').submodule_search_locations[0])\n"
    )
    # -S: without site-packages, where the repository may be installed already
    command = [sys.executable, "-S", "-E", "-P", "-c", code, str(tmp_path / "site")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    module, folder = output.splitlines()
    assert Path(module) == copy / "train/model/gpt.py"
    assert (Path(folder) / "presets/prose.yaml").read_text() == (
        copy / "dataprep/filters/presets/prose.yaml"
    ).read_text()


def test_every_message_and_page_that_installs_an_extra_names_the_distribution(tracked):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = "\n".join((ROOT / p).read_text(encoding="utf-8", errors="replace") for p in tracked)
    named = re.findall(r"\b(mt[\w-]*)\\?\[([a-z]+)\\?\]'", text)
    assert len(named) > 20
    assert {distribution for distribution, _ in named} == {project["name"]}
    assert {extra for _, extra in named} <= set(project["optional-dependencies"])


def test_the_version_of_the_package_is_that_of_distributions_and_of_the_newest_changes(copy, tmp_path):
    for made in build(copy, tmp_path / "dist", "sdist", "wheel"):
        assert made.name.startswith(f"mt_lm-{mt.__version__}{'.tar.gz' if made.suffix == '.gz' else '-'}")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == mt.__version__


def test_the_licence_is_apaches_text_with_our_name_in_its_notice_and_wheels_carry_it(wheel):
    text = (ROOT / "LICENSE").read_text()
    original = text.replace("Copyright The mt authors", "Copyright [yyyy] [name of copyright owner]")
    # the SHA-256 of https://www.apache.org/licenses/LICENSE-2.0.txt
    digest = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256(original.encode()).hexdigest() == digest
    assert original != text
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {n.split("/")[0] for n in archive.namelist() if ".dist-info/" in n}
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        assert archive.read(f"{folder}/licenses/LICENSE").decode() == text
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "The mt authors"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == "Apache-2.0"
    assert citation["authors"] == [{"name": "The mt authors"}]


@pytest.fixture(scope="module")
def wheel(copy, tmp_path_factory) -> Path:
    return build(copy, tmp_path_factory.mktemp("wheel") / "dist", "wheel")[0]


def requirements(wheel: Path, extra: str) -> set[str]:
    """The distributions that pip would install for `wheel[extra]`, of those in this environment."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    open_ones = [(Requirement(text), extra) for text in metadata.get_all("Requires-Dist")]
    found: set[tuple[str, str]] = set()
    while open_ones:
        requirement, of_extra = open_ones.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        for its_extra in {"", *requirement.extras}:
            if (requirement.name, its_extra) not in found:
                found.add((requirement.name, its_extra))
                needs = importlib.metadata.requires(requirement.name) or []
                open_ones += [(Requirement(need), its_extra) for need in needs]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory) -> Path:
    """The programs of an environment that has what `pip install WHEEL[train]` installs, and nothing else.

    Nothing is downloaded: the files of what the wheel requires are links to those of this environment.
    """
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in requirements(wheel, "train"):
        for path in importlib.metadata.files(name) or []:
            if ".." not in path.parts and "__pycache__" not in path.parts:
                (site / path).parent.mkdir(parents=True, exist_ok=True)
                if not (site / path).exists():
                    (site / path).symlink_to(path.locate())
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "-q"]
    subprocess.run([*command, "--no-index", "--no-deps", str(wheel)], check=True)
    return folder / "bin"


def run(clean: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the environment in a folder, and without what this process has of paths."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [str(clean / command[0]), *command[1:]],
        cwd=folder,
        env=environment | {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow  # half a minute: an environment is made, and torch is imported three times
def test_the_wheel_alone_has_what_every_stage_of_the_demo_imports_but_retro(clean, tmp_path):
    assert run(clean, tmp_path, "mt", "--version").stdout == f"mt {mt.__version__}\n"
    code = "import mt.cli; print(mt.cli.__file__)"
    assert run(clean, tmp_path, "python", "-c", code).stdout.startswith(str(clean.parent))
    small = small_pipeline(tmp_path / "small.yaml", without="retro")
    ended = run(clean, tmp_path, "mt", "run", str(small), "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert "train: mt train -> runs/demo/train" in ended.stdout
    ended = run(clean, tmp_path, "mt", "run", str(DEMO), "--dry-run")
    assert ended.returncode == 2
    assert "needs the package faiss; install it with: pip install 'mt-lm[retro]'" in ended.stderr


@pytest.mark.slow  # a minute and more, most of it numba's compiler; the test above imports the same modules
def test_the_wheel_alone_runs_the_demo_without_retro_in_any_folder(clean, tmp_path):
    ended = run(clean, tmp_path, "mt", "demo", "--until", "corpus")
    assert ended.returncode == 0, ended.stderr
    assert "the stage retro is left out" in ended.stderr
    manifest = json.loads((tmp_path / "runs/demo/corpus/manifest.json").read_text())
    assert manifest["mt_version"] == mt.__version__
    small = small_pipeline(tmp_path / "small.yaml", without="retro")
    ended = run(clean, tmp_path, "mt", "run", str(small), "--run-dir", "small")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "small/report/report.html").exists()
