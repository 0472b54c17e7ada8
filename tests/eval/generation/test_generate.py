"""Generation, compared with transformers' greedy search and a loop without a cache; settings and output."""

import json

import numpy as np
import pytest
import torch

from mt.core.config import UserError
from mt.documents import reader, sharding
from mt.eval.generation.generate import GenerateConfig, generate
from mt.eval.generation.sampling import Sampling
from mt.eval.lm import LanguageModel
from mt.train.checkpoint.architectures import weights_from_hf
from mt.train.checkpoint.hf_settings import config_from_hf
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.gpt import GPT
from mt.train.model.layers import initialize
from mt.train.prepacked_weights import prepare_for_inference

PROMPTS = ["a", "the cat sat on the", "", "naïve", "some longer prompt, of forty characters!"]


@pytest.fixture(params=["learned", "rope"])
def own_model(request, language_model):
    """mt's GPT with random weights and its key-value cache."""
    config = ModelConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=2,
        max_position_embeddings=64,
        position_embedding_type=request.param,
        init_method_std=0.5,
    )
    model = GPT(resolve(config, vocab_size=257, seq_length=64))
    initialize(model, seed=1)
    return LanguageModel(model.eval().requires_grad_(False), language_model.tokenizer, 64, batch_size=3)


def token_ids(model):
    return [model.tokenizer.encode(prompt) for prompt in PROMPTS]


GREEDY = Sampling(max_new_tokens=20, greedy=True)


def test_greedy_tokens_are_those_of_transformers_for_each_prompt_alone(language_model, gpt2):
    for prompt, found in zip(
        token_ids(language_model), language_model.generate(token_ids(language_model), GREEDY)
    ):
        start = prompt or [256]
        with torch.no_grad():
            expected = gpt2.generate(
                torch.tensor([start]), do_sample=False, max_new_tokens=20, pad_token_id=0
            )[0]
        assert found.ids == expected[len(start) :].tolist()


def test_greedy_tokens_with_the_cache_are_those_without_it(own_model):
    for prompt, found in zip(token_ids(own_model), own_model.generate(token_ids(own_model), GREEDY)):
        sequence = prompt or [256]
        for token, logprob in zip(found.ids, found.logprobs):
            with torch.no_grad():
                expected = own_model.model.logits(
                    own_model.model(torch.tensor([sequence]))[0, -1]
                ).log_softmax(-1)
            assert token == int(expected.argmax())
            assert logprob == pytest.approx(float(expected[token]), abs=1e-4)
            sequence = [*sequence, token]
        assert len(found.ids) == 20 or found.ids[-1] == 256


def config(checkpoint, **settings):
    return GenerateConfig(
        **{"load": checkpoint, "prompts": tuple(PROMPTS), "tokens_to_generate": 10, **settings}
    )


def test_the_summary_says_how_many_texts_it_does_not_show(checkpoint, tmp_path, monkeypatch):
    from mt.eval.generation import generate as module

    texts = {}
    for shown in (len(PROMPTS) - 1, len(PROMPTS)):
        monkeypatch.setattr(module, "SAMPLES_SHOWN", shown)
        texts[shown] = generate(config(checkpoint, output=str(tmp_path / str(shown))))["text"]
    assert texts[len(PROMPTS) - 1].endswith("... and 1 more in predictions.jsonl")
    assert "more in predictions.jsonl" not in texts[len(PROMPTS)]


def test_a_seed_reproduces_its_texts_at_any_batch_size(checkpoint):
    one, same, small, other = (
        [s["tokens"] for s in generate(config(checkpoint, **more))["samples"]]
        for more in ({}, {}, {"micro_batch_size": 2}, {"random_seed": 5})
    )
    assert one == same == small
    assert one != other


def test_equal_prompts_have_different_continuations_that_do_not_depend_on_the_batch_size(checkpoint):
    settings = {"prompts": ("a",) * 40, "tokens_to_generate": 6, "temperature": 2.0}
    many, one = (
        [s["tokens"] for s in generate(config(checkpoint, micro_batch_size=size, **settings))["samples"]]
        for size in (16, 1)
    )
    assert many == one
    assert len(set(map(tuple, many))) == 40


def test_top_k_1_is_greedy(checkpoint, language_model):
    greedy, single = (
        generate(config(checkpoint, **more))["samples"] for more in ({"greedy": True}, {"top_k": 1})
    )
    assert greedy == single
    assert [s["tokens"] for s in greedy] == [
        c.ids
        for c in language_model.generate(token_ids(language_model), Sampling(max_new_tokens=10, greedy=True))
    ]


def test_log_probabilities_are_those_of_the_model_at_any_temperature(checkpoint, language_model):
    for sample in generate(config(checkpoint, prompts=("ab", "c"), temperature=3.0, top_k=50))["samples"]:
        prompt = sample["prompt"].encode()
        (expected,) = language_model.rolling([([*prompt, *sample["tokens"]], len(prompt))])
        np.testing.assert_allclose(sample["logprobs"], expected, rtol=1e-3, atol=1e-4)


def test_a_stop_text_ends_a_continuation_and_is_removed(checkpoint):
    (whole,) = generate(config(checkpoint, prompts=("the cat",), tokens_to_generate=40, greedy=True))[
        "samples"
    ]
    stop = whole["text"][5:7]
    at = whole["text"].index(stop)
    (short,) = generate(
        config(checkpoint, prompts=("the cat",), tokens_to_generate=40, greedy=True, stop=(stop, "never"))
    )["samples"]
    assert (short["text"], short["ended"]) == (whole["text"][:at], "stop")
    assert len(short["tokens"]) < len(whole["tokens"])
    assert whole["ended"] in ("length", "eod")


def test_a_file_of_prompts_gives_one_prediction_for_each_line(checkpoint, tmp_path):
    lines = [{"id": f"p{i}", "text": f"prompt number {i}"} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"prompts": (), "input": (str(tmp_path / "prompts.jsonl"),)}
    printed = generate(config(checkpoint, **settings))
    kept = generate(config(checkpoint, output=str(tmp_path / "out"), **settings))
    written = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [s["id"] for s in written] == [line["id"] for line in lines]
    assert written == printed["samples"]
    assert kept["samples"] == written[:10]
    prompt_tokens, tokens = sum(len(line["text"]) for line in lines), sum(len(s["tokens"]) for s in written)
    assert kept["counts"] == {"prompts": 12, "prompt_tokens": prompt_tokens, "tokens": tokens, "rejected": 0}
    assert generate(config(checkpoint, output=str(tmp_path / "out"), **settings)) == kept


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(checkpoint, tmp_path):
    with pytest.raises(
        UserError,
        match=(
            r"prompt 2 \('bbb.*\.\.\.'\) has 60 tokens; with tokens_to_generate = 10 that is 70, but the"
            r" model has 64 positions; generate at most 4"
        ),
    ):
        generate(config(checkpoint, prompts=("a", "b" * 60)))
    with pytest.raises(UserError, match=r"has 64 tokens; .* shorten it to 54"):
        generate(config(checkpoint, prompts=("b" * 64,)))
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"text": "b" * 60}) + "\n" + json.dumps({"text": "c"}) + "\n")
    with pytest.raises(UserError, match=r"prompts\.jsonl, record 1: has 60 tokens"):
        generate(config(checkpoint, prompts=(), input=(str(path),)))
    summary = generate(config(checkpoint, prompts=(), input=(str(path),), on_error="skip"))
    assert summary["counts"]["rejected"] == 1
    assert "1 prompt was set aside" in summary["text"]
    assert [s["prompt"] for s in summary["samples"]] == ["c"]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tokens_of_an_imported_model_are_those_of_transformers_generate(kind):
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 300, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.3}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=4, **small)
    else:
        config = transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            **small,
        )
    torch.manual_seed(3)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    weights = theirs.state_dict()
    model = build_model(config_from_hf(config.to_dict(), "here"))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    model.load_state_dict(
        dict(weights_from_hf(kind, shapes, model.config, weights, weights.__getitem__, "here"))
    )
    ours = LanguageModel(
        prepare_for_inference(model.eval().requires_grad_(False)), TokenizerWithoutEnd(), 64, batch_size=3
    )
    prompts = [list(range(3, 3 + length)) for length in (1, 9, 4, 30, 2)]
    for prompt, found in zip(prompts, ours.generate(prompts, GREEDY)):
        with torch.no_grad():
            expected = theirs.generate(
                torch.tensor([prompt]), do_sample=False, max_new_tokens=20, pad_token_id=0
            )[0]
        assert found.ids == expected[len(prompt) :].tolist()


class TokenizerWithoutEnd:
    eod = None

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_with_echo_the_output_is_documents_of_prompt_and_text(checkpoint, tmp_path):
    summary = generate(config(checkpoint, echo=True, output=str(tmp_path / "out")))
    read = [d for shard in sharding.plan([str(tmp_path / "out")]) for d in reader.read(shard)]
    assert [d.text.startswith(prompt) for d, prompt in zip(read, PROMPTS)] == [True] * 5
    plain = generate(config(checkpoint))
    assert [s["text"] for s in summary["samples"]] == [s["prompt"] + s["text"] for s in plain["samples"]]
    assert summary["text"] == plain["text"], "the printed text has each prompt once"


def test_a_model_that_does_not_continue_text_is_refused(bert):
    with pytest.raises(
        UserError,
        match=r"step_\d+: is a model of family bert, which does not continue text; give a model of",
    ):
        generate(config(bert))


def test_beam_search_returns_all_beams_and_the_text_of_the_best(checkpoint):
    for sample in generate(config(checkpoint, beam_width=3, length_penalty=0.5))["samples"]:
        assert len(sample["beams"]) == 3
        assert sample["tokens"] == sample["beams"][0]["tokens"]
        assert [b["score"] for b in sample["beams"]] == sorted(
            (b["score"] for b in sample["beams"]), reverse=True
        )


def test_add_bos_begins_every_prompt_with_the_end_of_document_token(checkpoint, language_model):
    (sample,) = generate(config(checkpoint, prompts=("ab",), add_bos=True, greedy=True))["samples"]
    (expected,) = language_model.generate([[256, 97, 98]], Sampling(max_new_tokens=10, greedy=True))
    assert sample["tokens"] == expected.ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load": None}, "give either --load CHECKPOINT or --url"),
        ({"url": "http://x"}, "give either --load CHECKPOINT or --url"),
        ({"api_key_file": "k"}, "api_key_file has no effect without --url"),
        ({"top_p_decay": 0.5}, "top_p_decay has no effect without --top-p"),
        ({"top_p": 0.5, "top_p_bound": 0.2}, "top_p_bound has no effect without --top-p-decay"),
        (
            {"top_p": 0.5, "top_p_decay": 0.9, "top_p_bound": 0.6},
            r"top_p_bound = 0\.6 must be from 0 to top_p = 0\.5",
        ),
        ({"beam_width": 2, "greedy": True}, "beam_width does not sample"),
        ({"beam_width": 2, "stop": ("a",)}, "beam_width ends texts at --stop-token only"),
        ({"length_penalty": 2.0}, "length_penalty = 2 has no effect without --beam-width"),
        ({"stop_token": 3, "stop_on_eol": True}, "stop_token = 3 has no effect with --stop-on-eol"),
        (
            {"temperature": -1.0},
            "temperature = -1 must be above 0 and at most 100; for the most probable token pass --greedy",
        ),
        ({"temperature": 0.0}, "temperature = 0 must be above 0"),
        ({"top_k": -1}, "top_k = -1 must be at least 0"),
        ({"top_p": 1.5}, "top_p = 1.5 must be from 0 to 1"),
        ({"top_k": 3, "top_p": 0.5}, "top_k = 3 and top_p = 0.5 cannot both be set"),
        ({"tokens_to_generate": 0}, "tokens_to_generate = 0 must be at least 1"),
        ({"stop": ("",)}, "stop = '' would end every continuation at once"),
        ({"prompts": ()}, r"give either --prompts TEXT\.\.\. or --input FILE"),
        ({"input": ("x",)}, r"give either --prompts TEXT\.\.\. or --input FILE"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        config("x", **settings)
