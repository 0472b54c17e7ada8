import json

import numpy as np
import pytest
import torch
import transformers

from mt import cli
from mt.core.config import UserError
from mt.retro import embed
from mt.retro.embed import Embedder
from mt.train.checkpoint.huggingface import minilm_directory

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "",
    " ",
    "naïve café: 中文字符, 123,456 e-mails & [SEP] 🙂",
    "a",
    "supercalifragilistic " * 80,
    *(f"Chunk number {i} is about " + "cats and dogs " * (i % 7) for i in range(8)),
]


@pytest.fixture(autouse=True)
def _one_thread():
    """Several threads of the oracle are slow while other processes use the processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def minilm():
    return Embedder()


def hidden_states(directory, texts, tokenizer):
    """The last hidden states of each text by transformers, (tokens, D), one text at a time."""
    model = transformers.BertModel.from_pretrained(directory).eval()
    with torch.inference_mode():
        for text in texts:
            tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            yield model(**tokens).last_hidden_state[0]


@pytest.fixture
def tiny_bert(tmp_path):
    torch.manual_seed(0)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
        "Cat",
        "cat",
        "dog",
    ]
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return tmp_path


def test_minilm_vectors_equal_those_of_transformers_with_the_models_pooling(minilm):
    tokenizer = transformers.BertTokenizerFast(str(minilm_directory() / "vocab.txt"))
    expected = torch.stack([h.mean(0) for h in hidden_states(minilm_directory(), TEXTS, tokenizer)])
    expected = torch.nn.functional.normalize(expected, dim=1).numpy()
    vectors = minilm(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_any_other_bert_gives_the_mean_without_cls_and_sep_not_normalised(tiny_bert):
    texts = ["cat dog", "Cat", "abc zebra " * 30, "", "x"]
    tokenizer = transformers.BertTokenizerFast(str(tiny_bert / "vocab.txt"))
    model = transformers.BertModel.from_pretrained(tiny_bert).eval()
    with torch.inference_mode():
        hidden = [
            model(**tokenizer(t, truncation=True, max_length=40, return_tensors="pt")).last_hidden_state[0]
            for t in texts
        ]
    expected = torch.stack([h[1:-1].mean(0) if len(h) > 2 else torch.zeros(32) for h in hidden])
    np.testing.assert_allclose(Embedder(tiny_bert)(texts), expected.numpy(), atol=1e-5)


def test_a_cased_vocabulary_keeps_case(tiny_bert):
    (tiny_bert / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    vectors = Embedder(tiny_bert)(["Cat", "cat"])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_a_vector_does_not_depend_on_its_batch_nor_on_torchs_threads(minilm, monkeypatch):
    vectors = minilm(TEXTS)
    torch.set_num_threads(3)
    assert (minilm(TEXTS) == vectors).all()
    assert torch.get_num_threads() == 3
    monkeypatch.setattr(embed, "TOKENS_PER_BATCH", 1)
    np.testing.assert_allclose(minilm(TEXTS[::-1])[::-1], vectors, atol=1e-6)
    monkeypatch.setattr(minilm, "packs", False)  # as on a GPU
    np.testing.assert_allclose(minilm(TEXTS), vectors, atol=1e-6)
    monkeypatch.setattr(embed, "TOKENS_PER_BATCH", 512)
    np.testing.assert_allclose(minilm(TEXTS[::-1])[::-1], vectors, atol=1e-6)


def test_a_list_without_texts_gives_no_vectors(minilm):
    assert minilm([]).shape == (0, 384)


def test_the_digest_depends_on_settings_and_not_on_the_path(tiny_bert, tmp_path):
    before = Embedder(tiny_bert).digest
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (moved / name).write_bytes((tiny_bert / name).read_bytes())
    assert Embedder(moved).digest == before
    (moved / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert Embedder(moved).digest != before


def test_a_checkpoint_of_mt_gives_the_vectors_of_the_same_bert_of_hugging_face(tiny_bert, tmp_path):
    (tiny_bert / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "tokenizer_class": "BertTokenizer"})
    )
    transformers.BertForPreTraining(transformers.BertConfig.from_pretrained(tiny_bert)).save_pretrained(
        tiny_bert
    )
    ours = tmp_path / "ours"
    cli.call(
        ("checkpoint", "convert"),
        [
            str(tiny_bert),
            str(ours),
            "--tokenizer-type",
            "BertWordPieceLowerCase",
            "--vocab-file",
            str(tiny_bert / "vocab.txt"),
        ],
    )
    texts = ["cat dog", "abc zebra " * 30, "", "x"]
    embedder = Embedder(ours)
    np.testing.assert_allclose(embedder(texts), Embedder(tiny_bert)(texts), atol=1e-5)
    assert embedder.digest != Embedder(tiny_bert).digest


def test_bfloat16_keeps_the_direction_of_vectors_and_has_another_digest(minilm):
    narrow = Embedder(bf16=True)
    vectors = narrow(TEXTS)
    assert (vectors * minilm(TEXTS)).sum(1).min() > 0.9995
    assert narrow.digest != minilm.digest


def test_a_directory_without_a_bert_or_with_another_pooling_is_refused(tiny_bert, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such checkpoint; check the path"):
        Embedder(tmp_path / "nowhere")
    modules = [{"type": f"sentence_transformers.models.{n}"} for n in ("Transformer", "Pooling")]
    (tiny_bert / "modules.json").write_text(json.dumps(modules))
    (tiny_bert / "1_Pooling").mkdir()
    (tiny_bert / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    with pytest.raises(
        UserError, match=r"embeds by Transformer > Pooling with pooling_mode_cls_token; only the mean"
    ):
        Embedder(tiny_bert)
    (tiny_bert / "modules.json").unlink()
    (tiny_bert / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"has neither tokenizer\.json nor vocab\.txt"):
        Embedder(tiny_bert)
