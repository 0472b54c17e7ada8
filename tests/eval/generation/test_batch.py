"""Continuations in a batch, compared with each alone; prepacked weights, compared with plain ones."""

import copy
import itertools

import numpy as np
import pytest
import torch

from mt.eval.generation.batch import PASS_TOKENS, GenerationBatch, prefill_groups
from mt.eval.generation.sampling import Continuation, Sampling
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.gpt import GPT
from mt.train.model.layers import initialize
from mt.train.prepacked_weights import prepacking_works, prepare_for_inference

VOCABULARY, POSITIONS = 120, 300


class LetterTokenizer:
    eod = None

    def encode(self, text):
        return [ord(c) % VOCABULARY for c in text]

    def decode(self, ids):
        return "".join(chr(97 + i % 26) for i in ids)


def build(**settings):
    small = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "max_position_embeddings": POSITIONS,
        "init_method_std": 0.5,
    }
    model = GPT(resolve(ModelConfig(**{**small, **settings}), vocab_size=VOCABULARY, seq_length=POSITIONS))
    initialize(model, seed=2)
    return model.eval().requires_grad_(False)


SHAPES = {
    "learned": {},
    "rope": {"position_embedding_type": "rope", "window_size": 20},
    "alibi": {"position_embedding_type": "alibi", "embed_layernorm": True},
    "longrope": {
        "position_embedding_type": "rope",
        "window_size": 20,
        "window_attn_skip_freq": "[0,1]",
        "rope_scaling": {
            "rope_type": "longrope",
            "factor": 10.0,
            "original_max_position_embeddings": 24,
            "short_factor": [1.0, 1.5, 2.0, 3.0],
            "long_factor": [2.0, 5.0, 7.0, 9.0],
        },
    },
    "hybrid": {
        "num_layers": 4,
        "hybrid_override_pattern": "M*-M",
        "mamba_state_dim": 8,
        "mamba_head_dim": 8,
        "mamba_num_groups": 2,
    },
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def model(request):
    return build(**request.param)


def continuations(count, seed=0, **rules):
    random = np.random.default_rng(seed)
    return [
        Continuation(
            random.integers(0, VOCABULARY, random.integers(1, 60)).tolist(),
            Sampling(max_new_tokens=int(random.integers(1, 30)), **rules),
            LetterTokenizer(),
            np.random.default_rng((seed, n)),
        )
        for n in range(count)
    ]


def generate_alone(model, **rules):
    found = continuations(12, **rules)
    for one in found:
        assert list(
            GenerationBatch(model, LetterTokenizer(), max_length=POSITIONS, max_rows=1).run([one])
        ) == [one]
    return [(c.ids, c.logprobs) for c in found]


@pytest.mark.parametrize(
    "rules",
    [{"greedy": True}, {"top_k": 20}, {"top_p": 0.9, "top_p_decay": 0.9, "top_p_bound": 0.1}],
    ids=["greedy", "top-k", "top-p"],
)
def test_a_continuation_is_the_same_alone_and_in_a_batch_that_others_join_and_leave(model, rules):
    expected = generate_alone(model, **rules)
    batch = GenerationBatch(model, LetterTokenizer(), max_length=POSITIONS, max_rows=5)
    found = continuations(12, **rules)
    assert sorted(map(id, batch.run(iter(found)))) == sorted(map(id, found))
    for one, (ids, logprobs) in zip(found, expected):
        assert one.ids == ids
        np.testing.assert_allclose(one.logprobs, logprobs, rtol=1e-4, atol=1e-4)
    assert batch._cache is None, "an empty batch keeps no cache"


def test_greedy_tokens_are_those_of_a_pass_over_the_whole_text_without_a_cache(model):
    found = continuations(6, seed=8, greedy=True)
    list(GenerationBatch(model, LetterTokenizer(), max_length=POSITIONS, max_rows=3).run(iter(found)))
    for one in found:
        sequence = [*one.prompt, *one.ids]
        with torch.inference_mode():
            hidden = model(torch.tensor([sequence]))[0]
            grown = next((n for n in range(len(sequence)) if model.outgrows_cache(n)), 1)
            hidden[: grown - 1] = model(torch.tensor([sequence[: grown - 1] or sequence]))[0, : grown - 1]
            logits = model.logits(hidden)[len(one.prompt) - 1 : -1]
        assert logits.argmax(1).tolist() == one.ids
        np.testing.assert_allclose(one.logprobs, logits.log_softmax(1).amax(1), rtol=1e-3, atol=1e-3)


def test_continuations_join_between_two_tokens_and_a_removed_one_frees_its_row(model):
    expected = generate_alone(model, greedy=True)
    batch = GenerationBatch(model, LetterTokenizer(), max_length=POSITIONS, max_rows=8)
    found = continuations(12, greedy=True)
    waiting = list(enumerate(found))
    removed = next(c for c in found if c.sampling.max_new_tokens > 6)
    for step in itertools.count():
        if waiting:
            batch.add(waiting.pop(0)[1])
        elif not batch.rows:
            break
        batch.step()
        if len(removed.ids) == 3:
            batch.remove(removed)
        assert step < 100
    assert len(removed.ids) == 3
    assert [c.ids for c in found if c is not removed] == [
        ids for c, (ids, _) in zip(found, expected) if c is not removed
    ]


def test_rows_times_positions_stay_within_the_limit_and_all_continuations_end(model):
    batch = GenerationBatch(model, LetterTokenizer(), max_length=POSITIONS, max_rows=8, max_tokens=200)
    found = continuations(12, greedy=True)
    for one in found:
        batch.add(one)
    most = 0
    while batch.rows or batch.waiting:
        batch.step()
        most = max(most, len(batch.rows))
        assert (
            len(batch.rows) * max((len(c.prompt) + c.sampling.max_new_tokens for c in batch.rows), default=0)
            <= 200
        )
    assert most > 1
    assert all(c.ended for c in found)


def test_log_probabilities_of_a_prompt_are_those_of_the_model(model):
    one = Continuation(
        list(range(40)), Sampling(max_new_tokens=0, prompt_logprobs=True, top_logprobs=2), LetterTokenizer()
    )
    list(GenerationBatch(model, LetterTokenizer(), max_length=POSITIONS, max_rows=2).run([one]))
    with torch.no_grad():
        expected = model.logits(model(torch.tensor([one.prompt])))[0, :-1].log_softmax(-1)
    np.testing.assert_allclose(
        one.prompt_logprobs,
        expected.gather(1, torch.tensor(one.prompt[1:])[:, None])[:, 0],
        rtol=1e-4,
        atol=1e-4,
    )
    assert [list(top) for top in one.prompt_top] == expected.topk(2).indices.tolist()
    assert (one.ids, one.ended) == ([], "length")


def cost(divided):
    return sum(PASS_TOKENS + len(group) * max(len(c.prompt) for c in group) for group in divided)


def test_prefill_groups_have_the_least_cost_of_all_divisions():
    found = continuations(7, seed=4)
    ordered = sorted(found, key=lambda c: len(c.prompt))
    cuts = (
        itertools.pairwise([0, *cut, 7]) for n in range(7) for cut in itertools.combinations(range(1, 7), n)
    )
    best = min(cost([ordered[a:b] for a, b in cut]) for cut in cuts)
    assert cost(prefill_groups(found)) == best
    assert sorted(map(id, itertools.chain(*prefill_groups(found)))) == sorted(map(id, found))


@pytest.mark.skipif(not prepacking_works(), reason="this build of torch has no prepacked products")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "activation": "swiglu",
            "add_bias_linear": False,
            "normalization": "RMSNorm",
            "untie_embeddings_and_output_weights": True,
            "position_embedding_type": "rope",
        },
    ],
    ids=["gpt", "llama"],
)
def test_prepacked_weights_give_the_same_hidden_states_and_logits(settings):
    model, tokens = build(**settings), torch.arange(30).reshape(2, 15) % VOCABULARY
    with torch.inference_mode():
        hidden = model(tokens)
        logits = model.logits(hidden)
        prepare_for_inference(model)
        torch.testing.assert_close(model(tokens), hidden, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.logits(hidden), logits[..., :VOCABULARY], rtol=1e-4, atol=1e-4)
    assert generate_alone(build(**settings), greedy=True)[3][0] == generate_alone(model, greedy=True)[3][0]


def test_in_bfloat16_probabilities_are_nearly_the_same():
    model, exact = prepare_for_inference(build(), bf16=True), build()
    assert next(model.parameters()).dtype == torch.bfloat16
    tokens = torch.arange(30)[None] % VOCABULARY
    with torch.inference_mode():
        # without prepacked weights the logits include the padding of the vocabulary, of probability 0
        found = model.logits(model(tokens))[..., :VOCABULARY].float().softmax(-1)
        expected = exact.logits(exact(tokens))[..., :VOCABULARY].softmax(-1)
    assert (found - expected).abs().sum(-1).mean() < 0.1


@pytest.mark.gpu
def test_on_a_gpu_the_tokens_are_those_of_the_cpu(model):
    expected = generate_alone(model, greedy=True)
    found = continuations(12, greedy=True)
    list(
        GenerationBatch(copy.deepcopy(model).cuda(), LetterTokenizer(), max_length=POSITIONS, max_rows=5).run(
            iter(found)
        )
    )
    assert [c.ids for c in found] == [ids for ids, _ in expected]
