"""The whole way from a corpus with planted copies to two trained models: what Retro reads lowers its perplexity below the GPT's."""

import argparse
import importlib.util
from pathlib import Path

import pytest
import torch


@pytest.mark.slow  # trains two models
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_retro_foretells_planted_copies_that_its_gpt_cannot_know(tmp_path):
    spec = importlib.util.spec_from_file_location("planted", Path(__file__).parents[2] / "benchmarks" / "planted.py")
    planted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(planted)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = planted.compare(tmp_path, argparse.Namespace(steps=160, documents=2000, layers=6, hidden=32, neighbors=2, lr=5e-3))
    finally:
        torch.set_num_threads(threads)
    (gpt, gpt_shown, _), (retro, retro_shown, retro_others) = found["gpt"], found["retro"]
    assert retro < 0.9 * gpt
    assert retro_shown < 0.8 * gpt_shown
    assert retro_others > retro_shown  # where nothing was planted there is nothing to read
