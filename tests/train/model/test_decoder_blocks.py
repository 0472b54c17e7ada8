import pytest
import torch
import torch.utils.checkpoint

from mt.tests.train.model.small_models import gpt, random_tokens

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_symbol_of_a_hybrid_pattern_makes_a_block():
    model = gpt(num_layers=None, hybrid_override_pattern="*-*-")
    plain = gpt()
    assert [(layer.mixer is None, layer.ffn is None) for layer in model.layers] == [
        (False, True),
        (True, False),
    ] * 2
    weights = {
        name: w for name, w in plain.state_dict().items() if ".ffn" not in name and ".mixer" not in name
    }
    for i in range(2):
        for part, at in (("mixer", 2 * i), ("ffn", 2 * i + 1)):
            weights |= {
                name.replace(f"layers.{i}.", f"layers.{at}."): w
                for name, w in plain.state_dict().items()
                if name.startswith(f"layers.{i}.{part}")
            }
    model.load_state_dict(weights)
    torch.testing.assert_close(model(random_tokens()), plain(random_tokens()))
