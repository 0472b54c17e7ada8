"""Beam search, compared with transformers': the same beams, in the same order, with the same scores."""

import pytest
import torch

from mt.eval.generation.beam_search import BeamSearch
from mt.eval.generation.sampling import Sampling


def search(language_model, prompt, **settings):
    beams = BeamSearch(
        language_model.model,
        language_model.tokenizer,
        prompt,
        Sampling(max_new_tokens=settings.pop("max_new_tokens")),
        **settings,
    )
    while not beams.done:
        beams.step()
    return beams


@pytest.mark.parametrize("early", [False, True], ids=["never ends", "ends early"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_beams_are_those_of_transformers(language_model, gpt2, width, length_penalty, early):
    for prompt in (list(b"the cat"), [256], list(b"some longer prompt")):
        (greedy,) = language_model.generate([prompt], Sampling(max_new_tokens=3, greedy=True))
        end = greedy.ids[-1] if early else 256
        with torch.no_grad():
            expected = gpt2.generate(
                torch.tensor([prompt]),
                num_beams=width,
                num_return_sequences=width,
                do_sample=False,
                max_new_tokens=12,
                length_penalty=length_penalty,
                pad_token_id=0,
                eos_token_id=end,
                early_stopping=False,
                return_dict_in_generate=True,
                output_scores=True,
            )
        beams = BeamSearch(
            language_model.model,
            language_model.tokenizer,
            prompt,
            Sampling(max_new_tokens=12, stop_token=end),
            beam_width=width,
            length_penalty=length_penalty,
        )
        while not beams.done:
            beams.step()
        wanted = [until_end(row[len(prompt) :].tolist(), end) for row in expected.sequences]
        assert [list(beam.ids) for beam in beams.found] == wanted
        if width > 1:  # with one beam transformers uses greedy search, which has no scores
            assert [beam.score for beam in beams.found] == pytest.approx(
                expected.sequences_scores.tolist(), rel=1e-4
            )


def until_end(ids, end):
    return ids[: ids.index(end) + 1] if end in ids else ids


def test_a_score_is_the_sum_of_the_log_probabilities_divided_by_a_power_of_the_length(language_model):
    for penalty in (0.5, 2.0):
        for beam in search(
            language_model, [1, 2], beam_width=3, max_new_tokens=7, length_penalty=penalty
        ).found:
            assert beam.score == pytest.approx(sum(beam.logprobs) / 7**penalty, rel=1e-4)
            (expected,) = language_model.rolling([([1, 2, *beam.ids], 2)])
            assert beam.logprobs == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)
