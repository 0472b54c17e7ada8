"""Writes requirements.lock: the packages of constraints.txt with the SHA-256 of the files that PyPI has.

    make lock        # python .ci/lock.py, with uv installed beside this Python

uv resolves pyproject.toml with all extras but `gpu`, whose packages are built on the machine, under the
versions of constraints.txt. Of each package the file lists the wheels for CPython 3.11 and 3.12 on Linux,
x86-64, or the source archive where there is no such wheel. Torch and the CUDA libraries that its build on
PyPI needs are left out: builds of torch for one kind of GPU, or for none, are published elsewhere, with other
hashes.
"""

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging import tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
WITHOUT = {"gpu"}  # extras
PYTHONS = ((3, 11), (3, 12))
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in range(5, 36)] + [
    f"{name}_x86_64" for name in ("manylinux1", "manylinux2010", "manylinux2014", "linux")
]
ENVIRONMENT = "sys_platform == 'linux' and platform_machine == 'x86_64' and python_version < '3.13'"
HEAD = """\
# The packages of constraints.txt with the SHA-256 of their files on PyPI; for CPython 3.11 and 3.12 on Linux,
# x86-64. Written by `make lock`. Install torch first, in the version of constraints.txt: see SECURITY.md.
"""


def main() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(ROOT / "README.md", folder)
        # without this uv would also resolve for other systems, where not every package has wheels
        environment = f'\n[tool.uv]\nenvironments = ["{ENVIRONMENT}"]\n'
        (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + environment)
        uv = Path(sys.executable).parent / "uv"
        command = [str(uv), "pip", "compile", "pyproject.toml", "--quiet", "--universal"]
        command += ["--python-version", "3.11", "--format", "pylock.toml", "-o", "pylock.toml"]
        command += ["-c", str(ROOT / "constraints.txt")]
        command += [f"--extra={extra}" for extra in sorted(extras - WITHOUT)]
        subprocess.run(command, check=True, cwd=folder)
        packages = tomllib.loads((folder / "pylock.toml").read_text())["packages"]
    blocks = [block(package) for package in packages if is_locked(package["name"])]
    (ROOT / "requirements.lock").write_text(HEAD + "".join(blocks))


def is_locked(name: str) -> bool:
    return name not in ("torch", "triton") and not name.startswith(("nvidia-", "cuda-"))


def block(package: dict) -> str:
    """The lines of one package."""
    supported = {
        tag
        for python in PYTHONS
        for tag in [
            *tags.cpython_tags(python, platforms=PLATFORMS),
            *tags.compatible_tags(python, f"cp{python[0]}{python[1]}", PLATFORMS),
        ]
    }
    wheels = [
        wheel
        for wheel in package.get("wheels", [])
        if parse_wheel_filename(wheel["url"].rpartition("/")[2])[3] & supported
    ]
    hashes = sorted(file["hashes"]["sha256"] for file in wheels or [package["sdist"]])
    lines = [
        f"{package['name']}=={package['version']}",
        *(f"    --hash=sha256:{digest}" for digest in hashes),
    ]
    return " \\\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
