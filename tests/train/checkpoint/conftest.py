"""A small run, for the tests of checkpoints."""

import pytest

from mt.core.config import build


@pytest.fixture(scope="session")
def gpt2_run(tmp_path_factory, tree):
    """A finished run of a model that Hugging Face also has. Its 60 tokens are padded to 128 rows."""
    folder = tmp_path_factory.mktemp("gpt2") / "run"
    settings = tree(folder, train_iters=3)
    settings["model"]["activation"] = "gelu_tanh"
    from mt.train.loop import TrainConfig, train

    train(build(TrainConfig, ("test", settings)))
    return folder
