"""Every preset builds a model, with the published number of parameters."""

import pytest
import torch

from mt.core.config import build
from mt.core.presets import presets, read_preset
from mt.train.loop import TrainConfig
from mt.train.model.config import resolve
from mt.train.model.family import build_model

# preset -> (published vocabulary size, number of parameters). Parameters are counted in the safetensors files
# of the Hugging Face Hub, or computed by the formula given.
PUBLISHED = {
    "gpt-345m": (50257, 354_823_168),  # gpt2-medium
    # L (12 D^2 + 13 D) + (V + T) D + 2 D with L = 24, D = 2048, V = 50257, T = 2048
    "gpt-1.3b": (50257, 1_315_723_264),
    "llama3-8b": (128256, 8_030_261_248),
    "llama3.2-1b": (128256, 1_235_814_400),
    "mistral-7b": (32000, 7_241_732_096),
    "qwen3-0.6b": (151936, 596_049_920),
    "starcoderbase-1b": (49152, 1_137_207_296),
    # bert-large-uncased with both heads; its norm after the embedding is here one after the last layer
    "bert-345m": (30522, 336_226_108),
    "mixtral-8x7b": (32000, 46_702_792_704),
    "deepseek-v2-lite": (102400, 15_706_484_224),
    # of transformers' DeepseekV3ForCausalLM; the files also have a layer of multi-token prediction
    "deepseek-v3": (129280, 671_026_404_352),
    "mamba2-2.7b": (50288, 2_702_599_680),
    # 4 (2.5 D^2) + 28 (8 D^2) + 24 (6.53 D^2) + 2 V D + smaller terms, with D = 4096; paper: 8.66 billion
    "mamba2-hybrid-8b": (256000, 8_654_517_248),
    # 12 (12 D^2 + 13 D) + 12 (16 D^2 + 19 D) + (V + T) D + 4 D with D = 768, T = 512
    "t5-220m": (32128, 223_546_368),
}


def model_of(preset, **settings):
    tree = read_preset(TrainConfig, preset)
    run = {"data": {"data_path": ["p"]}, "train": {"train_iters": 10_000}, "checkpoint": {"save": "s"}}
    config = build(TrainConfig, (preset, tree), ("test", {**run, "model": settings}))
    with torch.device("meta"):
        return build_model(
            resolve(
                config.model, vocab_size=settings.get("vocab_size", 1000), seq_length=config.data.seq_length
            )
        )


@pytest.mark.parametrize("name", presets(TrainConfig))
def test_a_preset_builds(name):
    model = model_of(name)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert len((presets(TrainConfig)[name]).read_text().splitlines()) <= 15


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name):
    vocabulary, parameters = PUBLISHED[name]
    assert (
        sum(
            p.numel()
            for p in model_of(name, vocab_size=vocabulary, make_vocab_size_divisible_by=1).parameters()
        )
        == parameters
    )
