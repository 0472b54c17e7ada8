"""Generation by T5 in a batch, compared with transformers' for each prompt."""

import pytest
import torch
import transformers

from mt.eval.encoder_decoder import EncoderDecoder
from mt.eval.generation.beam_search import BeamSearch
from mt.eval.generation.sampling import Sampling
from mt.eval.lm import LanguageModel
from mt.train.checkpoint.architectures import weights_from_hf
from mt.train.checkpoint.hf_settings import config_from_hf
from mt.train.model.t5 import T5

V = 61


class CharacterTokenizer:
    bos, eod, vocab_size = None, 1, V

    def encode(self, text):
        return [2 + ord(letter) % 50 for letter in text]

    def decode(self, ids):
        return "".join(chr(60 + i) for i in ids)


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 4.0}
    config = transformers.T5Config(vocab_size=V, **sizes, decoder_start_token_id=0, eos_token_id=1)
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    ours = T5(config_from_hf(config.to_dict(), "config.json")).eval()
    weights, shapes = dict(theirs.named_parameters()), {name: p.shape for name, p in ours.named_parameters()}
    ours.load_state_dict(
        dict(weights_from_hf("t5", shapes, ours.config, weights, weights.__getitem__, "here"))
    )
    return theirs, EncoderDecoder(ours, 0)


PROMPTS = [
    torch.randint(2, V, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (5, 23, 9, 14, 2, 30, 7)
]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_greedy_answers_are_those_of_transformers_for_each_prompt_alone(models, rows):
    theirs, ours = models
    expected = [
        theirs.generate(torch.tensor([p]), max_new_tokens=12, do_sample=False, num_beams=1)[0, 1:].tolist()
        for p in PROMPTS
    ]
    found = LanguageModel(ours, CharacterTokenizer(), 256, batch_size=rows).generate(
        PROMPTS, Sampling(max_new_tokens=12, greedy=True)
    )
    assert [c.ids for c in found] == expected


@pytest.mark.parametrize("width", [2, 4])
def test_beams_are_those_of_transformers(models, width):
    theirs, ours = models
    for prompt in PROMPTS[:3]:
        beams = BeamSearch(ours, CharacterTokenizer(), prompt, Sampling(max_new_tokens=8), beam_width=width)
        while not beams.done:
            beams.step()
        how = {
            "num_beams": width,
            "num_return_sequences": width,
            "early_stopping": False,
            "return_dict_in_generate": True,
            "output_scores": True,
        }
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, **how)
        assert [beam.score for beam in beams.found] == pytest.approx(
            expected.sequences_scores.tolist(), abs=1e-4
        )
