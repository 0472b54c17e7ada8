import json

import pytest
import torch
import transformers

from mt.core.config import UserError
from mt.train.checkpoint.huggingface import minilm_directory
from mt.train.checkpoint.open import open_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def test_minilm_gives_the_hidden_states_of_transformers():
    directory = minilm_directory()
    tokens = torch.randint(1000, 30000, (3, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(40) < torch.tensor([[40], [7], [25]])
    with torch.no_grad():
        ours = open_checkpoint(directory).load_encoder()(tokens, mask)
        theirs = (
            transformers.AutoModel.from_pretrained(str(directory))
            .eval()(input_ids=tokens, attention_mask=mask.long())
            .last_hidden_state
        )
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=0, atol=1e-5)


def test_a_random_bert_with_token_types_and_tanh_gelu_gives_those_of_transformers(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=16,
        hidden_act="gelu_new",
        initializer_range=0.3,
    )
    theirs = transformers.BertForMaskedLM(config).eval()  # its names begin with `bert.`
    theirs.save_pretrained(tmp_path)
    tokens, types = torch.randint(0, 50, (2, 16)), torch.randint(0, 2, (2, 16))
    with torch.no_grad():
        ours = open_checkpoint(tmp_path).load_encoder()(tokens, token_types=types)
        expected = theirs.bert(input_ids=tokens, token_type_ids=types).last_hidden_state
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_what_is_no_bert_is_refused_with_the_reason(tmp_path):
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
    gpt2.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match=r"model_type is 'gpt2'; only 'bert' can be loaded"):
        open_checkpoint(tmp_path / "gpt2").load_encoder()
    config = json.loads((minilm_directory() / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="not a whole safetensors file"):
        open_checkpoint(tmp_path).load_encoder()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(minilm_directory() / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    with pytest.raises(UserError, match=r"has no weight bert\.encoder\.layer\.6"):
        open_checkpoint(tmp_path).load_encoder()
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    with pytest.raises(
        UserError, match=r"layers\.0\.ffn\.up\.weight has shape \(1536, 384\), config.json says \(100, 384\)"
    ):
        open_checkpoint(tmp_path).load_encoder()
