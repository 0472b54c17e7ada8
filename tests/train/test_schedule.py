import dataclasses
import math
import re
import types

import pytest

from mt.core.config import UserError
from mt.train.optimizer import OptimizerConfig, learning_rate, weight_decay
from mt.train.schedule import BatchSize, LearningRate


def megatron_rate(rate: LearningRate, samples: int) -> float:
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    scheduler = types.SimpleNamespace(
        max_lr=rate.peak,
        min_lr=rate.minimum,
        init_lr=rate.initial,
        num_steps=samples,
        lr_warmup_steps=rate.warmup,
        lr_decay_style=rate.style,
        lr_decay_steps=rate.decay,
        wsd_decay_steps=rate.wsd_decay,
        lr_wsd_decay_style=rate.wsd_style,
    )
    return OptimizerParamScheduler.get_lr(scheduler, {})


@pytest.mark.parametrize("warmup", [0, 1, 37])
@pytest.mark.parametrize("style", ["constant", "linear", "cosine", "inverse-square-root"])
def test_the_learning_rate_is_megatrons_at_every_sample(style, warmup):
    rate = LearningRate(3e-4, 1e-5, style, warmup, decay=200)
    assert [rate.at(n) for n in range(260)] == [megatron_rate(rate, n) for n in range(260)]


def test_a_warmup_may_begin_above_zero():
    rate = LearningRate(3e-4, 1e-5, "cosine", 20, decay=200, initial=1e-4)
    assert rate.at(0) == 1e-4
    assert [rate.at(n) for n in range(60)] == [megatron_rate(rate, n) for n in range(60)]


@pytest.mark.parametrize("style", ["linear", "cosine"])
def test_the_weight_decay_is_megatrons_at_every_sample(style):
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    config = OptimizerConfig(start_weight_decay=0.01, end_weight_decay=0.1, weight_decay_incr_style=style)
    ours = weight_decay(config, 100)
    theirs = types.SimpleNamespace(start_wd=0.01, end_wd=0.1, wd_incr_steps=100, wd_incr_style=style)
    for samples in range(120):
        theirs.num_steps = samples
        assert ours.at(samples) == OptimizerParamScheduler.get_wd(theirs), samples


def test_a_constant_weight_decay_is_the_given_one():
    assert [weight_decay(OptimizerConfig(weight_decay=0.3), 100).at(n) for n in (0, 50, 200)] == [
        0.3,
        0.3,
        0.3,
    ]


@pytest.mark.parametrize("wsd_style", ["linear", "cosine", "exponential", "minus_sqrt"])
def test_warmup_stable_decay_is_megatrons_at_every_sample(wsd_style):
    rate = LearningRate(3e-4, 1e-5, "WSD", 10, decay=200, wsd_decay=50, wsd_style=wsd_style)
    assert [rate.at(n) for n in range(220)] == [megatron_rate(rate, n) for n in range(220)]


def test_learning_rates_worked_by_hand():
    linear = LearningRate(1.0, 0.1, "linear", warmup=4, decay=14)
    assert [linear.at(n) for n in (0, 2, 4, 9, 14, 15)] == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1, 0.1])
    cosine = LearningRate(1.0, 0.0, "cosine", warmup=0, decay=8)
    assert [cosine.at(n) for n in (0, 2, 4, 8)] == pytest.approx([1.0, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.0])


def test_the_batch_size_rampup_is_megatrons():
    from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

    theirs = RampupBatchsizeNumMicroBatchesCalculator(64, 2, 2, False, 1, 16, 8, 1000)
    ours = BatchSize.rampup(64, (16, 8, 1000))
    for consumed in range(0, 1400, 7):
        theirs.update(consumed, consistency_check=False)
        assert ours.at(consumed) == min(theirs.current_global_batch_size, 64), consumed
    assert ours.sizes() == [16, 24, 32, 40, 48, 56, 64]


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["0:4", "64:8", "0.16K:12"], [(0, 4), (8, 8), (20, 12)]),
        (["0:4 64:8, 160:12"], [(0, 4), (8, 8), (20, 12)]),
        (["200B:768", "400b:1152", "0:384"], [(0, 384), (200 * 10**9 // 8, 768), (400 * 10**9 // 8, 1152)]),
        (["0:16", "2.4B:320", "1T:1K"], [(0, 16), (300_000_000, 320), (125 * 10**9, 1000)]),
    ],
)
def test_a_stepwise_batch_size_is_megatrons(words, steps):
    """steps: worked by hand as StepBatchsizeNumMicroBatchesCalculator does, for samples of 8 tokens."""
    ours = BatchSize.stepwise(words, 8)
    assert ours.steps_up == tuple(steps)
    for (before, _), (begin, size) in zip(((0, 0), *steps), steps):
        assert ours.at(begin) == size
        assert begin == 0 or ours.at(begin - 1) == dict(steps)[before]
    assert ours.sizes() == sorted(size for _, size in steps)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["0:4", "8"], "has '8'; each step is TOKENS:SIZE"),
        (["0:4", "8:0"], "has '8:0'; each step is"),
        (["0:4", "8Q:2"], "has '8Q:2'; each step is"),
        (["0:4", "1e3:2"], "has '1e3:2'; each step is"),
        (["0:4:5"], "has '0:4:5'; each step is"),
        (["8:4"], "= '8:4' must say the size from the first token on; begin with 0:SIZE"),
        (["0:4", "7:8"], "the size 8 begins after 0 samples of 8 tokens, but the one before it after 0"),
    ],
)
def test_what_is_no_stepwise_batch_size_is_refused(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        BatchSize.stepwise(words, 8)


def test_a_run_has_as_many_whole_batches_as_fit():
    assert list(BatchSize(8).steps(30)) == [(0, 8), (8, 8), (16, 8)]
    assert list(BatchSize(8).steps(30, consumed=16)) == [(16, 8)]
    assert [size for _, size in BatchSize.rampup(8, (2, 2, 12)).steps(40)] == [2, 2, 4, 6, 8, 8, 8]


def test_steps_are_turned_into_samples_by_the_global_batch():
    config = OptimizerConfig(
        lr=1.0, min_lr=0.1, lr_decay_style="linear", lr_warmup_iters=2, lr_decay_iters=50
    )
    rate = learning_rate(config, total_samples=800, global_batch_size=8, by_samples=False)
    assert (rate.warmup, rate.decay) == (16, 400)
    fraction = dataclasses.replace(config, lr_warmup_iters=0, lr_warmup_fraction=0.1)
    # a fraction of the decay, as in Megatron-LM
    assert learning_rate(fraction, total_samples=800, global_batch_size=8, by_samples=False).warmup == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_warmup_iters": 100}, r"warm-up \(800 samples\) must be shorter than its decay \(800 samples\)"),
        (
            {"lr_warmup_samples": 5},
            "lr_warmup_samples does not fit a run of --train-iters; use lr_warmup_iters",
        ),
        ({"lr_decay_style": "WSD"}, "lr_decay_style = WSD needs lr_wsd_decay_iters"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        learning_rate(OptimizerConfig(**changes), total_samples=800, global_batch_size=8, by_samples=False)


def test_a_rampup_that_does_not_reach_the_global_batch_size_is_refused():
    with pytest.raises(UserError, match="global batch 64 minus start 16 is not a multiple of increment 7"):
        BatchSize.rampup(64, (16, 7, 1000))
    with pytest.raises(UserError, match="must be three positive numbers"):
        BatchSize.rampup(64, (16, 8))


def test_contradicting_settings_are_refused_together():
    with pytest.raises(
        UserError,
        match=(
            r"(?s)lr_warmup_fraction and lr_warmup_iters are both given.*lr_decay_iters and lr_decay_samples"
            r" are both given"
        ),
    ):
        OptimizerConfig(lr_warmup_fraction=0.1, lr_warmup_iters=3, lr_decay_iters=1, lr_decay_samples=8)
