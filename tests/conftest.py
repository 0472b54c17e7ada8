"""Fixtures that tests of several folders use."""

import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# No time limits: a busy machine would fail tests that pass. The first example may compile a loop.
hypothesis.settings.register_profile("mt", deadline=None)
hypothesis.settings.load_profile("mt")

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as cli.main does, before anything imports torch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tests marked `gpu` on a machine without a CUDA device."""
    if not (marked := [item for item in items if item.get_closest_marker("gpu")]):
        return
    import torch

    if not torch.cuda.is_available():
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=marked)


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """Lets collections of garbage visit only what the tests of a module make.

    Commands collect garbage, and the objects of all imported libraries would take a second each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """`../shared`: large real inputs beside a developer's checkout; tests that need it skip elsewhere."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.exists():
        pytest.skip("../shared is missing: only developers' checkouts have it")
    return folder


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright; tests that need it skip where one of them is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def megatron_golden() -> dict[str, Any]:
    """What Megatron-LM computes for small inputs (tests/fixtures/README.md)."""
    return json.loads((FIXTURES / "megatron_golden.json").read_text())


@pytest.fixture(scope="session")
def speeches_file() -> Path:
    """JSONL of 41 real English documents: addresses of presidents of the USA."""
    return FIXTURES / "speeches.jsonl"


@pytest.fixture(scope="session")
def speeches(speeches_file) -> list[str]:
    """The texts of `speeches_file`."""
    return [json.loads(line)["text"] for line in speeches_file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def bert_vocabulary() -> str:
    """The path of a WordPiece vocabulary: the first 5,000 entries of that of BERT base uncased."""
    return str(FIXTURES / "bert_vocab.txt")


@pytest.fixture(scope="session")
def gpt2_files(tmp_path_factory) -> dict[str, str]:
    """The settings `vocab_file` and `merge_file` of GPT-2's tokenizer.

    Token ids follow from the merges: the bytes that are printable characters, the other bytes, one token for
    each merge, `<|endoftext|>`.
    """
    merges = FIXTURES / "gpt2_merges.txt"
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = [chr(b) for b in printed] + [chr(256 + n) for n in range(256 - len(printed))]
    joined = [line.replace(" ", "") for line in merges.read_text(encoding="utf-8").splitlines()[1:]]
    tokens = [*characters, *joined, "<|endoftext|>"]
    vocabulary = tmp_path_factory.mktemp("gpt2") / "vocab.json"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    return {"vocab_file": str(vocabulary), "merge_file": str(merges)}


@pytest.fixture(scope="session")
def punkt(tmp_path_factory, speeches) -> Path:
    """The folder `tokenizers/punkt_tab/english`: Punkt parameters that NLTK trained, in NLTK's layout."""
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

    trainer = PunktTrainer()
    trainer.INCLUDE_ALL_COLLOCS = True
    titles = "Yesterday Dr. Smith met Mr. Fox and Mrs. Hill at No. 5 at 3 p.m. They saw prof. Xu there. "
    trainer.train(titles * 20 + "\n\n".join(speeches), finalize=True)
    folder = tmp_path_factory.mktemp("nltk_data") / "tokenizers/punkt_tab/english"
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nltk.data.path", [str(folder.parents[2])])  # NLTK writes only to folders of its path
        save_punkt_params(trainer.get_params(), dir=str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Path:
    """The folder for caches of commands, in place of the one in the user's home."""
    os.environ["XDG_CACHE_HOME"] = str(folder := tmp_path_factory.mktemp("cache"))
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray cluster of two processors for all tests, because a start takes seconds."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'mt-lm[ray]'")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def pool():
    """Processes for jobs of several ranks: pool.run(function, num_ranks, *arguments) -> results by rank."""
    from mt.tests.train.processes import Pool

    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def one_thread():
    """torch on one thread in this file: with such small models two threads mostly wait for each other.

    Not in the whole session, because other tests and libraries change the number; not in each test, because
    fixtures of the file train before that.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
