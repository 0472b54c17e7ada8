"""requirements.lock against constraints.txt, pyproject.toml and the dependencies of what is installed."""

import importlib.metadata
import itertools
import re
import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
SCRIPT = runpy.run_path(str(ROOT / ".ci/lock.py"))
LINUX = {
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
}


def pinned(text):
    """{name: version} of the lines `name==version`."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^ \n]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


@pytest.fixture(scope="module")
def locked():
    return pinned(LOCK.read_text())


@pytest.fixture(scope="module")
def constraints():
    return pinned((ROOT / "constraints.txt").read_text())


def test_every_line_is_a_version_of_constraints_with_hashes_and_nothing_else(locked, constraints):
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    body = "\n".join(lines) + "\n"
    entry = r"[a-z0-9-]+==[0-9][0-9a-z.]*(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"(?:{entry})+", body), "no address, no path, no entry without a hash"
    assert {name: constraints.get(name) for name in locked} == locked
    # tzdata is for systems without a time zone database
    assert set(constraints) - set(locked) == {"torch", "tzdata"}


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_every_dependency_of_every_extra_is_locked(locked, python):
    """Follows the dependencies of the installed packages, as pip would on Linux."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        name: r for name, r in project["optional-dependencies"].items() if name not in SCRIPT["WITHOUT"]
    }
    given = [*project["dependencies"], *itertools.chain.from_iterable(extras.values())]
    open_ones = [Requirement(requirement) for requirement in given]
    environment = {**LINUX, "python_version": python, "python_full_version": f"{python}.0"}
    seen, missing = set(), set()
    while open_ones:
        wanted = open_ones.pop()
        name = canonicalize_name(wanted.name)
        if not SCRIPT["is_locked"](name):
            continue
        for extra in {"", *wanted.extras}:
            if (name, extra) in seen or (
                wanted.marker and not wanted.marker.evaluate({**environment, "extra": extra})
            ):
                continue
            seen.add((name, extra))
            if name not in locked:
                missing.add(name)
                continue
            assert wanted.specifier.contains(locked[name], prereleases=True), wanted
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # not on this machine
            for need in map(Requirement, needs):
                if need.marker is None or need.marker.evaluate({**environment, "extra": extra}):
                    need.marker = None
                    open_ones.append(need)
    assert missing == set()
    assert len({name for name, _ in seen}) > 50


def test_a_package_is_locked_by_its_wheels_for_linux_or_else_by_its_source():
    file = lambda name: {"url": f"https://x/{name}", "hashes": {"sha256": name}}
    wheels = [
        "a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "a-1-cp312-cp312-manylinux_2_28_x86_64.whl",
        "a-1-cp39-abi3-manylinux_2_28_x86_64.whl",
        "a-1-py3-none-any.whl",
    ]
    others = [
        "a-1-cp313-cp313-manylinux_2_28_x86_64.whl",
        "a-1-cp311-cp311-musllinux_1_2_x86_64.whl",
        "a-1-cp311-cp311-manylinux_2_28_aarch64.whl",
        "a-1-cp311-cp311-macosx_11_0_arm64.whl",
        "a-1-cp311-cp311-win_amd64.whl",
        "a-1-cp311-cp311-manylinux_2_39_x86_64.whl",
    ]
    package = {"name": "a", "version": "1", "sdist": file("a-1.tar.gz")}
    hashes = lambda **more: re.findall("sha256:([^ \n]+)", SCRIPT["block"](package | more))
    assert hashes(wheels=[*map(file, wheels + others)]) == sorted(wheels)
    assert hashes(wheels=[*map(file, others)]) == hashes() == ["a-1.tar.gz"]
