"""`mt.load`: texts, log-likelihoods, logits, compared with transformers, lm-eval and mt generate."""

import numpy as np
import pytest
import torch

import mt
from mt.eval.lm import open_model
from mt.eval.loaded_model import DTYPES, load
from mt.tests.train.checkpoint.transformers_models import V, random_model, random_tokens, write
from mt.train.checkpoint.open import open_checkpoint

transformers = pytest.importorskip("transformers")
CONTEXTS = ["w5 w17 w3", "w9", "w40 w41 w42 w43 w44 w45 "]
PAIRS = [(context, " w8 w60") for context in CONTEXTS] + [("", "w7 w8"), ("w3  ", "w4"), ("w3", " w4")]


@pytest.fixture(scope="module")
def theirs():
    return random_model("gpt2")


@pytest.fixture(scope="module")
def directory(theirs, tmp_path_factory):
    return write(theirs, tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def model(directory):
    return load(directory)


def test_logits_of_texts_ids_arrays_and_tensors_are_those_of_transformers(model, theirs):
    ids = random_tokens((20,))
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    text = " ".join(f"w{i}" for i in ids.tolist())
    for given in (text, ids, ids.numpy(), ids.tolist()):
        found = model.logits(given)
        assert found.shape == (20, V)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    several = model.logits([text, "w3"])
    assert [len(rows) for rows in several] == [20, 1]
    assert torch.equal(several[0], model.logits(text))


def test_greedy_texts_are_those_of_transformers(model, theirs):
    ids = [model.tokenizer.encode(context) for context in CONTEXTS]
    expected = []
    for prompt in ids:
        out = theirs.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0)
        expected.append(model.tokenizer.decode(out[0, len(prompt) :].tolist()))
    found = model.generate(CONTEXTS, max_new_tokens=8, temperature=0)
    assert [text.split() for text in found] == [text.replace("</s>", "").split() for text in expected]
    assert model.generate(CONTEXTS[1], max_new_tokens=8, temperature=0) == found[1]


def test_a_stream_gives_the_same_texts_in_pieces(model):
    texts = model.generate(CONTEXTS, 12, temperature=1.3, top_k=20, seed=3)
    pieces = list(model.generate(CONTEXTS, 12, temperature=1.3, top_k=20, seed=3, stream=True))
    assert len(pieces) > len(CONTEXTS)
    for number, text in enumerate(texts):
        assert "".join(piece for n, piece in pieces if n == number) == text
    alone = model.generate(CONTEXTS[0], 12, temperature=1.3, top_k=20, seed=3, stream=True)
    assert next(alone)
    assert texts[0].endswith("".join(alone))
    assert model.generate(CONTEXTS, 12, top_k=20, seed=4) != texts
    assert list(model.generate([], stream=True)) == model.generate([]) == []


def test_texts_are_those_of_mt_generate(model, directory):
    how = {"temperature": 1.5, "top_p": 0.9, "stop": "w3"}
    summary = mt.run(
        "generate", load=directory, prompts=CONTEXTS, tokens_to_generate=10, random_seed=7, **how
    )
    assert model.generate(CONTEXTS, 10, seed=7, **how) == [s["text"] for s in summary["samples"]]


def test_log_likelihoods_are_those_of_lm_evals_adapter_and_of_transformers(model, directory, theirs):
    adapter_module = pytest.importorskip("mt.eval.lm_eval_adapter")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    adapter = adapter_module.LmEvalAdapter(open_model(open_checkpoint(directory), "positions", 4))
    requests = [
        instance(request_type="loglikelihood", doc={}, arguments=pair, idx=n) for n, pair in enumerate(PAIRS)
    ]
    found = model.loglikelihood(PAIRS)
    expected = adapter.loglikelihood(requests, disable_tqdm=True)
    assert [one.is_greedy for one in found] == [greedy for _, greedy in expected]
    np.testing.assert_allclose([one.logprob for one in found], [nats for nats, _ in expected], rtol=1e-5)
    with torch.no_grad():
        logprobs = theirs(torch.tensor([[5, 17, 3, 8, 60]])).logits[0].log_softmax(1)
    assert found[0].logprob == pytest.approx(float(logprobs[2, 8] + logprobs[3, 60]), rel=1e-4)
    assert model.loglikelihood(*PAIRS[0]) == found[0]


def test_a_model_tells_what_it_is_and_takes_its_dtype_and_device(directory, theirs):
    model = load(directory, dtype=torch.bfloat16, device="cpu")
    assert repr(model) == (
        f"<gpt of {model.num_parameters:,} parameters from {directory}: 64 positions, 61 tokens in the"
        " vocabulary, bfloat16 on cpu>"
    )
    assert next(model.module.parameters()).dtype == torch.bfloat16 == DTYPES["bfloat16"]
    ids = random_tokens((20,))
    with torch.no_grad():
        expected = theirs.to(torch.float32)(ids[None]).logits[0]
    assert (model.logits(ids) - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_t5_generates_but_is_not_scored(tmp_path):
    model = load(write(random_model("t5"), tmp_path))
    assert isinstance(model.generate("w5 w6", 4), str)
    for call in (lambda: model.logits("w5"), lambda: model.loglikelihood("w5", " w6")):
        with pytest.raises(mt.UserError, match=r"is a model of family t5, .*give a model of family gpt"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.generate("w3", 64),
            r"prompt 0 has 1 tokens; with max_new_tokens = 64 that is 65, but the",
        ),
        (lambda m: m.generate("w3", 0), "max_new_tokens = 0 must be at least 1"),
        (lambda m: m.generate("w3", temperature=-1), r"temperature = -1 must be from 0 \(greedy\) to 100"),
        (lambda m: m.generate("w3", top_k=3, top_p=0.5), "cannot both be set"),
        (lambda m: m.generate("w3", stop=""), "stop = '' would end"),
        (lambda m: m.generate([[3, 4]]), "prompts must be a text or several texts"),
        (lambda m: m.logits(""), "a text without tokens has no logits"),
        (lambda m: m.logits([3, 61]), "id 61 must be from 0 to 60"),
        (lambda m: m.logits([[3, 4]]), r"ids of shape \(1, 2\) must have the shape \(T,\)"),
        (lambda m: m.logits([3] * 65), "65 tokens do not fit the 64 positions"),
        (lambda m: m.loglikelihood("w3"), "needs a context and a continuation"),
        (lambda m: m.loglikelihood("w3", " w4" * 65), "a continuation of 65 tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(model, call, message):
    with pytest.raises(mt.UserError, match=message):
        call(model)


def test_no_checkpoint_no_dtype_and_no_device_are_refused(tmp_path, directory):
    with pytest.raises(mt.UserError, match="nothing: no such checkpoint"):
        load(tmp_path / "nothing")
    with pytest.raises(mt.UserError, match=r"dtype = 'int8' must be one of float32, bfloat16"):
        load(directory, dtype="int8")
    with pytest.raises(mt.UserError, match=r"device = tpu7: .*; give cpu, or a device of this machine"):
        load(directory, device="tpu7")
