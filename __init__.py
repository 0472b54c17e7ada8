"""mt: raw text to a trained, evaluated language model in one repository behind one command.

The names below are the Python API, described in docs/api.md. Each is imported when it is first used (PEP
562), so that `import mt` takes a few milliseconds.
"""

TYPE_CHECKING = False  # type checkers take it as true; typing itself would double the time of this import
if TYPE_CHECKING:
    from typing import Any

    from .commands.api import run
    from .core.config import Failure, UserError
    from .dataprep.in_memory import KeptDocuments, RemovedDocument, clean, dedup
    from .documents.in_memory import read_documents, write_documents
    from .documents.reader import Document
    from .eval.loaded_model import LoadedModel, LogLikelihood, load
    from .indexed.torch_datasets import TokenSamples, TokenSequences, gpt_dataset, open_dataset

__version__ = "0.1.0"

_MODULES = {
    "commands.api": ("run",),
    "core.config": ("Failure", "UserError"),
    "dataprep.in_memory": ("RemovedDocument", "KeptDocuments", "clean", "dedup"),
    "documents.in_memory": ("read_documents", "write_documents"),
    "documents.reader": ("Document",),
    "eval.loaded_model": ("LoadedModel", "LogLikelihood", "load"),
    "indexed.torch_datasets": ("TokenSamples", "TokenSequences", "gpt_dataset", "open_dataset"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Document",
    "Failure",
    "KeptDocuments",
    "LoadedModel",
    "LogLikelihood",
    "RemovedDocument",
    "TokenSamples",
    "TokenSequences",
    "UserError",
    "clean",
    "dedup",
    "gpt_dataset",
    "load",
    "open_dataset",
    "read_documents",
    "run",
    "write_documents",
]  # fmt: skip


def __getattr__(name: str) -> "Any":
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    try:
        value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", __name__):
            raise
        from .core.config import UserError
        from .core.extras import needs_package

        raise UserError(needs_package(f"mt.{name}", package)) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
