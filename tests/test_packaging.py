"""A wheel, a source distribution and an editable install have the files of the repository."""

import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_INSTALLED = {".ci", "benchmarks", "docs", "tests"}
# Builds run in a copy of the repository, because they write build/ and mt.egg-info/ beside pyproject.toml.
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
    return {f"mt/{p}" for p in inside if len(p.parts) > 1 or p.suffix == ".py"}


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
    data = {str(p) for p in inside if len(p.parts) > 1 and not (p.suffix == ".py" and p.parent in folders)}
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
    added = {f for f in files if f.startswith("mt.egg-info/")} | {"PKG-INFO", "setup.cfg"}
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
