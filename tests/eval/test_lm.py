"""Log-likelihoods, compared with transformers one sequence at a time."""

import itertools

import numpy as np
import pytest
import torch

from mt.core.config import UserError
from mt.eval.lm import LanguageModel


def reference(gpt2, ids, first):
    """(log-probabilities, hits) of ids[first:] by transformers, from the log-softmax over the vocabulary.

    A hit is a token that is the most probable one.
    """
    with torch.no_grad():
        logprobs = gpt2(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
    targets = torch.tensor(ids[1:])
    picked = logprobs.gather(1, targets[:, None])[:, 0]
    return picked[first - 1 :].numpy(), (logprobs.argmax(-1) == targets)[first - 1 :].numpy()


def random_requests(count, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        ids = rng.integers(0, 256, rng.integers(2, longest)).tolist()
        cut = int(rng.integers(1, len(ids)))
        yield ids[:cut], ids[cut:]


def greedy_continuation(gpt2, context, count):
    ids = list(context)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(gpt2(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(context) :]


def test_loglikelihoods_are_those_of_transformers(language_model, gpt2):
    requests = list(random_requests(50))
    requests += [(c, greedy_continuation(gpt2, c, 3)) for c, _ in requests[:5] if len(c) < 60]
    answers = language_model.loglikelihood(requests)
    for (context, continuation), (logprob, greedy) in zip(requests, answers):
        expected, hits = reference(gpt2, context + continuation, len(context))
        assert logprob == pytest.approx(expected.sum(), rel=1e-5)
        assert greedy == hits.all()
    assert any(greedy for _, greedy in answers), "the planted greedy continuations are reported as greedy"
    assert not all(greedy for _, greedy in answers)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_loglikelihoods_do_not_depend_on_the_batch_size(language_model, batch_size):
    requests = list(random_requests(40, seed=3))
    other = LanguageModel(language_model.model, language_model.tokenizer, 64, batch_size)
    one, two = language_model.loglikelihood(requests), other.loglikelihood(requests)
    assert [g for _, g in one] == [g for _, g in two]
    np.testing.assert_allclose([p for p, _ in one], [p for p, _ in two], rtol=1e-5)


def test_loglikelihoods_do_not_depend_on_the_order_of_the_requests(language_model):
    requests = list(random_requests(40, seed=4))
    forward = language_model.loglikelihood(requests)
    backward = language_model.loglikelihood(requests[::-1])[::-1]
    np.testing.assert_allclose([p for p, _ in forward], [p for p, _ in backward], rtol=1e-5)


def test_requests_with_the_same_whole_sequence_share_one_forward_pass(language_model, monkeypatch):
    rows = []
    forward = language_model.model.forward
    monkeypatch.setattr(
        language_model.model,
        "forward",
        lambda tokens, **more: (rows.append(len(tokens)), forward(tokens, **more))[1],
    )
    whole = list(range(30))
    cuts = [1, 7, 29]
    answers = language_model.loglikelihood([(whole[:cut], whole[cut:]) for cut in cuts])
    assert sum(rows) == 1
    alone = [language_model.loglikelihood([(whole[:cut], whole[cut:])])[0] for cut in cuts]
    np.testing.assert_allclose([p for p, _ in answers], [p for p, _ in alone], rtol=1e-6)


def test_an_empty_context_is_the_end_of_document_token(language_model, gpt2):
    ((logprob, _),) = language_model.loglikelihood([([], [5, 6, 7])])
    assert logprob == pytest.approx(reference(gpt2, [256, 5, 6, 7], 1)[0].sum(), rel=1e-5)


def test_a_context_that_is_too_long_is_truncated_at_its_beginning(language_model, gpt2):
    rng = np.random.default_rng(5)
    context, continuation = rng.integers(0, 256, 200).tolist(), [9, 8, 7]
    ((logprob, _),) = language_model.loglikelihood([(context, continuation)])
    kept = (context + continuation)[-65:]
    assert logprob == pytest.approx(reference(gpt2, kept, 62)[0].sum(), rel=1e-5)


def test_an_empty_continuation_has_probability_1(language_model):
    assert language_model.loglikelihood([([1, 2], [])]) == [(0.0, True)]


def test_rolling_gives_the_log_probability_of_every_target_in_the_order_of_the_windows(language_model, gpt2):
    windows = [(c + t, len(c)) for c, t in random_requests(30, seed=6)]
    scored = list(language_model.rolling(iter(windows)))
    assert len(scored) == len(windows)
    for (ids, first), logprobs in zip(windows, scored):
        assert logprobs.dtype == np.float32
        np.testing.assert_allclose(logprobs, reference(gpt2, ids, first)[0], rtol=1e-4, atol=1e-5)


def test_rolling_reads_at_most_a_few_batches_of_windows_in_advance(language_model):
    read = itertools.count()
    endless = (([1, 2, 3], 1) for _ in iter(lambda: next(read), None))
    next(language_model.rolling(endless))
    assert next(read) <= language_model.slab + 1


def test_likelihoods_are_computed_for_scored_positions_only(language_model, monkeypatch):
    rows = []
    log_likelihoods = language_model.model.log_likelihoods
    monkeypatch.setattr(
        language_model.model,
        "log_likelihoods",
        lambda hidden, targets: (rows.append(len(hidden)), log_likelihoods(hidden, targets))[1],
    )
    language_model.loglikelihood([(list(range(40)), [1, 2])] * 2 + [(list(range(50)), [3] * 9)])
    assert sum(rows) == 11


def test_a_model_whose_logits_are_not_numbers_is_refused(language_model, monkeypatch):
    broken = lambda hidden, targets: (torch.full((len(hidden),), float("nan")), targets > 0)
    monkeypatch.setattr(language_model.model, "log_likelihoods", broken)
    with pytest.raises(UserError, match="not numbers"):
        language_model.loglikelihood([([1, 2], [3])])
