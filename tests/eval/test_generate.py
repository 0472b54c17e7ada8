"""Generation: transformers' greedy search, a loop without a cache, and the sampling rules by hand."""

import json

import numpy as np
import pytest
import torch

from mt.config import UserError
from mt.eval.generate import GenerateConfig, candidates, generate, sampler
from mt.eval.lm import LanguageModel
from mt.train.model.gpt import GPT
from mt.train.model.layers import ModelConfig, initialize, resolve

PROMPTS = ["a", "the cat sat on the", "", "naïve", "some longer prompt, of forty characters!"]


@pytest.fixture(params=["learned", "rope"])
def own_model(request, language_model):
    """mt's own GPT with its key-value cache, random weights."""
    config = ModelConfig(
        num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, max_position_embeddings=64,
        position_embedding_type=request.param, init_method_std=0.5,
    )
    model = GPT(resolve(config, vocab_size=257, seq_length=64))
    initialize(model, seed=1)
    return LanguageModel(model.eval().requires_grad_(False), language_model.tokenizer, 64, batch_size=3)


def token_ids(model):
    return [model.tokenizer.encode(prompt) for prompt in PROMPTS]


def test_greedy_tokens_are_those_of_transformers_for_each_prompt_alone(language_model, gpt2):
    for prompt, (ids, _) in zip(token_ids(language_model), language_model.generate(token_ids(language_model), 20)):
        start = prompt or [256]
        with torch.no_grad():
            expected = gpt2.generate(torch.tensor([start]), do_sample=False, max_new_tokens=20, pad_token_id=0)[0]
        assert ids == expected[len(start) :].tolist()


def test_greedy_tokens_with_the_cache_are_those_without_it(own_model):
    for prompt, (ids, logprobs) in zip(token_ids(own_model), own_model.generate(token_ids(own_model), 20)):
        sequence = prompt or [256]
        for token, logprob in zip(ids, logprobs):
            with torch.no_grad():
                expected = own_model.model.logits(own_model.model(torch.tensor([sequence]))[0, -1]).log_softmax(-1)
            assert token == int(expected.argmax())
            assert logprob == pytest.approx(float(expected[token]), abs=1e-4)
            sequence = [*sequence, token]
        assert len(ids) == 20 or ids[-1] == 256


def test_a_continuation_ends_with_the_end_of_document(language_model):
    forced = iter([7, 256, 8, 9])
    answers = language_model.generate([[1, 2]], 4, choose=lambda logits, numbers: torch.tensor([next(forced)]))
    assert answers[0][0] == [7, 256]


def test_a_row_that_has_ended_does_not_disturb_the_others(own_model):
    prompts = token_ids(own_model)
    whole = [ids for ids, _ in own_model.generate(prompts, 12)]
    stopped = [ids for ids, _ in own_model.generate(prompts, 12, stopped=lambda number, ids: number == 1 and len(ids) == 3)]
    assert stopped[1] == whole[1][:3]
    assert [ids for n, ids in enumerate(stopped) if n != 1] == [ids for n, ids in enumerate(whole) if n != 1]


LOGITS = torch.tensor([[2.0, 1.0, 1.0, 0.0, -1.0]])


def kept(logits):
    return torch.isfinite(logits)[0].tolist()


def test_the_temperature_divides_the_logits():
    assert torch.equal(candidates(LOGITS, 0.5, 0, 0.0), LOGITS * 2)


def test_top_k_keeps_every_logit_not_below_the_kth():
    assert kept(candidates(LOGITS, 1.0, 2, 0.0)) == [True, True, True, False, False]
    assert kept(candidates(LOGITS, 1.0, 99, 0.0)) == [True] * 5


def test_top_p_keeps_the_token_that_crosses():
    probabilities = torch.tensor([[0.2, 0.5, 0.3]])
    for top_p, expected in [(0.001, [False, True, False]), (0.49, [False, True, False]), (0.6, [False, True, True]), (0.81, [True, True, True]), (1.0, [True, True, True])]:
        assert kept(candidates(probabilities.log(), 1.0, 0, top_p)) == expected


def test_top_p_looks_at_the_distribution_after_the_temperature():
    probabilities = torch.tensor([[0.6, 0.4]])
    assert kept(candidates(probabilities.log(), 1.0, 0, 0.7)) == [True, True]
    assert kept(candidates(probabilities.log(), 0.1, 0, 0.7)) == [True, False]


def megatron_top_p(logits, top_p):
    """modify_logits_for_top_p_filtering of Megatron-LM's text_generation/sampling.py."""
    ordered, indices = torch.sort(logits, descending=True)
    removed = ordered.softmax(dim=-1).cumsum(dim=-1) > top_p
    removed[:, 1:] = removed[:, :-1].clone()
    removed[..., 0] = 0
    return logits.masked_fill(removed.scatter(1, indices, removed), float("-inf"))


def test_top_p_is_megatrons_on_random_logits():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 3
    for top_p in (0.1, 0.5, 0.9, 0.99):
        assert torch.equal(candidates(logits, 1.0, 0, top_p), megatron_top_p(logits, top_p))


def test_tokens_are_drawn_by_their_probabilities():
    draw = sampler(2.0, 3, 0.0, [np.random.default_rng(0)])
    counts = torch.bincount(torch.cat([draw(LOGITS, [0]) for _ in range(20_000)]), minlength=5) / 20_000
    expected = torch.cat([(LOGITS[0, :3] / 2).softmax(0), torch.zeros(2)])
    torch.testing.assert_close(counts, expected, atol=0.015, rtol=0)
    assert counts[3:].sum() == 0


def config(checkpoint, **settings):
    return GenerateConfig(**{"load": checkpoint, "prompts": tuple(PROMPTS), "tokens_to_generate": 10, **settings})


def test_a_seed_reproduces_its_texts_at_any_batch_size(checkpoint):
    one, same, small, other = (
        [s["tokens"] for s in generate(config(checkpoint, **more))["samples"]]
        for more in ({}, {}, {"micro_batch_size": 2}, {"random_seed": 5})
    )
    assert one == same == small
    assert one != other


def test_prompts_that_are_alike_are_continued_differently_however_many_are_read_ahead(checkpoint):
    settings = {"prompts": ("a",) * 40, "tokens_to_generate": 6, "temperature": 2.0}
    many, one = ([s["tokens"] for s in generate(config(checkpoint, micro_batch_size=size, **settings))["samples"]] for size in (16, 1))
    assert many == one
    assert len(set(map(tuple, many))) == 40


def test_top_k_1_is_greedy(checkpoint, language_model):
    greedy, single = (generate(config(checkpoint, **more))["samples"] for more in ({"greedy": True}, {"top_k": 1}))
    assert greedy == single
    assert [s["tokens"] for s in greedy] == [ids for ids, _ in language_model.generate(token_ids(language_model), 10)]


def test_log_probabilities_are_the_models_own_whatever_the_temperature(checkpoint, language_model):
    for sample in generate(config(checkpoint, prompts=("ab", "c"), temperature=3.0, top_k=50))["samples"]:
        prompt = sample["prompt"].encode()
        (expected,) = language_model.rolling([([*prompt, *sample["tokens"]], len(prompt))])
        np.testing.assert_allclose(sample["logprobs"], expected, rtol=1e-3, atol=1e-4)


def test_a_stop_text_ends_a_continuation_and_is_cut_off(checkpoint):
    (whole,) = generate(config(checkpoint, prompts=("the cat",), tokens_to_generate=40, greedy=True))["samples"]
    stop = whole["text"][5:7]
    at = whole["text"].index(stop)
    (short,) = generate(config(checkpoint, prompts=("the cat",), tokens_to_generate=40, greedy=True, stop=(stop, "never")))["samples"]
    assert (short["text"], short["ended"]) == (whole["text"][:at], "stop")
    assert len(short["tokens"]) < len(whole["tokens"])
    assert whole["ended"] in ("length", "eod")


def test_a_file_of_prompts_is_continued_line_by_line_into_the_output(checkpoint, tmp_path):
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


def test_a_prompt_too_long_is_refused_with_the_numbers(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"prompt 2 \('bbb.*\.\.\.'\) has 60 tokens; with tokens_to_generate = 10 that is 70, but the model has 64 positions; generate at most 4"):
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


@pytest.mark.parametrize(("settings", "message"), [
    ({"temperature": -1.0}, "temperature = -1 must be above 0 and at most 100; for the most probable token pass --greedy"),
    ({"temperature": 0.0}, "temperature = 0 must be above 0"),
    ({"top_k": -1}, "top_k = -1 must be at least 0"),
    ({"top_p": 1.5}, "top_p = 1.5 must be from 0 to 1"),
    ({"top_k": 3, "top_p": 0.5}, "top_k = 3 and top_p = 0.5 cannot both be set"),
    ({"tokens_to_generate": 0}, "tokens_to_generate = 0 must be at least 1"),
    ({"stop": ("",)}, "stop = '' would end every continuation at once"),
    ({"prompts": ()}, r"give either --prompts TEXT\.\.\. or --input FILE"),
    ({"input": ("x",)}, r"give either --prompts TEXT\.\.\. or --input FILE"),
])
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        config("x", **settings)
