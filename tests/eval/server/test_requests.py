"""Requests that are refused, with Megatron-LM's messages and with OpenAI's fields."""

import json

import pytest

from mt.eval.encoder_decoder import EncoderDecoder
from mt.eval.generation.sampling import Sampling
from mt.eval.server.requests import GenerationRequest, RequestError, completion_request, megatron_request
from mt.tests.eval.server.running_server import small_model

MEGATRON_REFUSALS = [
    ({}, "prompts argument required"),
    ({"prompts": ["a"], "max_len": 3}, "max_len is no longer used.  Replace with tokens_to_generate"),
    ({"prompts": ["a"], "sentences": ["b"]}, "sentences is no longer used.  Replace with prompts"),
    ({"prompts": "a"}, "prompts is not a list of strings"),
    ({"prompts": [1]}, "prompts is not a list of strings"),
    ({"prompts": []}, "prompts is empty"),
    ({"prompts": ["a"] * 129}, "Maximum number of prompts is 128"),
    ({"tokens_to_generate": 1.5}, "tokens_to_generate must be an integer greater than 0"),
    ({"tokens_to_generate": -1}, "tokens_to_generate must be an integer greater than or equal to 0"),
    ({"tokens_to_generate": 0}, "tokens_to_generate=0 implies logprobs should be True"),
    ({"logprobs": 1}, "logprobs must be a boolean value"),
    ({"temperature": "hot"}, "temperature must be a positive number less than or equal to 100.0"),
    ({"temperature": 0}, "temperature must be a positive number less than or equal to 100.0"),
    ({"top_k": 1.0}, "top_k must be an integer equal to or greater than 0 and less than or equal to 1000"),
    ({"top_k": 1001}, "top_k must be equal to or greater than 0 and less than or equal to 1000"),
    ({"top_p": True}, "top_p must be a positive float less than or equal to 1.0"),
    ({"top_p": 1.1}, "top_p must be less than or equal to 1.0"),
    ({"top_p": 0.5, "top_k": 2}, "cannot set both top-k and top-p samplings."),
    ({"top_p_decay": 0.5}, "top_p_decay cannot be set without top_p"),
    ({"top_p_bound": 0.5}, "top_p_bound cannot be set without top_p"),
    ({"top_p": 0.4, "top_p_bound": 0.5}, "top_p_bound must be greater than 0 and less than top_p"),
    ({"add_BOS": "yes"}, "add_BOS must be a boolean value"),
    ({"prompts": ["a", ""]}, "Empty prompts require add_BOS=true"),
    ({"stop_on_eol": 0}, "stop_on_eol must be a boolean value"),
    ({"stop_on_double_eol": 0}, "stop_on_double_eol must be a boolean value"),
    ({"prevent_newline_after_colon": 0}, "prevent_newline_after_colon must be a boolean value"),
    ({"random_seed": "1"}, "random_seed must be integer"),
    ({"random_seed": -1}, "random_seed must be a positive integer"),
    ({"no_log": 1}, "no_log must be a boolean value"),
    ({"beam_width": 2.0}, "beam_width must be integer"),
    ({"beam_width": 0}, "beam_width must be an integer > 1"),
    ({"prompts": ["a", "b"], "beam_width": 2}, "When doing beam_search, batch size must be 1"),
    ({"stop_token": "x"}, "stop_token must be an integer"),
    ({"stop_token": 257}, "stop_token must be an id of the vocabulary"),
    ({"beam_width": 2, "length_penalty": "1"}, "length_penalty must be a float"),
    ({"length_penalty": 2.0}, "length_penalty cannot be set without beam_width"),
    ({"tokens_to_generate": 128}, "Length of prompt + tokens_to_generate longer than allowed"),
    (
        {"prompts": ["a" * 60] * 128, "tokens_to_generate": 60},
        "Too many tokens.  15360 is greater than 12000",
    ),
    ({"tokens_to_generatr": 3}, "tokens_to_generatr is not known; did you mean tokens_to_generate?"),
    ({"prompts": ["\ud800"]}, "prompt: number 1 is not valid Unicode text (a lone surrogate)"),
]


@pytest.mark.parametrize(("body", "message"), MEGATRON_REFUSALS, ids=range(len(MEGATRON_REFUSALS)))
def test_an_invalid_megatron_request_is_refused_with_megatrons_message(server, body, message):
    body = body if not body or "prompts" in body else {"prompts": ["a"], **body}
    reply = server.client.put("/api", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()) == (400, message)


@pytest.mark.parametrize(
    "field",
    [
        {"stop_on_eol": True},
        {"stop_on_double_eol": True},
        {"prevent_newline_after_colon": True},
        {"no_log": True},
        {"stop_token": 32},
        {"top_p": 1},
        {"top_p": 0.9, "top_p_decay": 0.9, "top_p_bound": 0.2},
        {"temperature": 100},
        {"add_BOS": True},
    ],
)
def test_the_other_fields_of_megatrons_request_have_their_effect(server, field):
    reply = server.api(prompts=["a:"], tokens_to_generate=5, random_seed=1, **field)
    assert reply.status_code == 200, reply.text
    if "stop_token" in field:
        end = server.api(prompts=["a:"], tokens_to_generate=30, top_k=1).json()["tokens"][0][5]
        (ids,) = server.api(prompts=["a:"], tokens_to_generate=30, top_k=1, stop_token=end).json()["tokens"]
        assert ids.index(end, 2) == len(ids) - 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"max_tokens": 3}, 400, "prompt: Field required"),
        ({"prompt": []}, 400, "prompt: "),
        ({"prompt": [300]}, 400, "prompt: id 300 is not below 257, the size of the vocabulary"),
        (
            {"prompt": "a", "max_tokens": 200},
            400,
            (
                "prompt: number 1 has 1 tokens; with max_tokens = 200 that is 201, but the model has 128"
                " positions"
            ),
        ),
        ({"prompt": "a", "temperature": "x"}, 400, "temperature: "),
        ({"prompt": "a", "temperature": 1, "n": 2}, 400, "n: "),
        ({"prompt": "a", "best": 2}, 400, "best: Extra inputs are not permitted"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens: 0 needs echo and logprobs"),
        ({"prompt": "a", "beam_width": 2, "stream": True}, 400, "beam_width: cannot be combined"),
        ({"prompt": "a", "model": "gpt-5"}, 404, "model 'gpt-5' is not served here; ask for 'small'"),
        (
            {"prompt": ["a"] * 100, "max_tokens": 126},
            400,
            "prompt: 100 prompts of up to 127 tokens each are 12700, more than the 12000",
        ),
    ],
)
def test_an_invalid_completion_request_is_refused_in_one_line(server, body, status, message):
    reply = server.complete(**body)
    assert reply.status_code == status
    assert message in reply.json()["error"]["message"]


MODEL = small_model()
MEGATRON_LIMITS = [
    ("tokens_to_generate", {"logprobs": True}, [0, 1, 127], [-1]),
    ("temperature", {}, [0.001, 100], [0, 100.1, -1.0]),
    ("top_k", {}, [0, 1, 1000], [-1, 1001]),
    ("top_p", {}, [0, 0.5, 1], [-0.1, 1.1]),
    ("top_p_decay", {"top_p": 0.5}, [0, 1], [-0.1, 1.1]),
    ("top_p_bound", {"top_p": 1}, [0.1, 1], [0, 1.1]),
    ("random_seed", {}, [0, 2**63 - 1], [-1, 2**63]),
    ("beam_width", {}, [1, 64], [0, 65]),
    ("stop_token", {}, [0, 256], [-1, 257]),
    ("length_penalty", {"beam_width": 2}, [-100, 0, 100], [-100.1, 100.1]),
]


@pytest.mark.parametrize(("field", "others", "good", "bad"), MEGATRON_LIMITS)
def test_numbers_of_megatrons_request_outside_their_limits_are_refused(field, others, good, bad):
    body = {"prompts": ["a"], "tokens_to_generate": 1, **others}
    for value in good:
        megatron_request({**body, field: value}, MODEL, 12000)
    for value in bad:
        with pytest.raises(RequestError) as refused:
            megatron_request({**body, field: value}, MODEL, 12000)
        assert refused.value.status == 400
        assert field in refused.value.message


COMPLETION_LIMITS = [
    ("max_tokens", {"echo": True, "logprobs": 0}, [0, 1, 127], [-1, 128]),
    ("temperature", {}, [0.0, 100.0], [-0.1, 100.1]),
    ("top_p", {}, [0.001, 1.0], [0.0, 1.1]),
    ("top_k", {}, [0, 1000], [-1, 1001]),
    ("top_p_decay", {"top_p": 0.5}, [0.0, 1.0], [-0.1, 1.1]),
    ("top_p_bound", {"top_p": 0.5, "top_p_decay": 0.5}, [0.0, 0.5], [-0.1, 0.6]),
    ("logprobs", {}, [0, 20], [-1, 21]),
    ("seed", {}, [0, 2**63 - 1], [-1, 2**63]),
    ("first_prompt", {}, [0, 2**63 - 1], [-1, 2**63]),
    ("stop", {}, ["x", "x" * 1000, ["x"] * 16], ["", "x" * 1001, ["x"] * 17]),
    ("stop_token", {}, [0, 256], [-1, 257]),
    ("beam_width", {}, [1, 64], [0, 65]),
    ("length_penalty", {"beam_width": 2}, [-100.0, 100.0], [-100.1, 100.1]),
    ("n", {}, [1], [0, 2]),
    ("best_of", {}, [1], [0, 2]),
    ("prompt", {}, [["a"] * 128, [0, 256], [[0]] * 128], [["a"] * 129, [257], [-1], [[0]] * 129, [[]]]),
]


@pytest.mark.parametrize(("field", "others", "good", "bad"), COMPLETION_LIMITS)
def test_fields_of_openais_request_outside_their_limits_are_refused(field, others, good, bad):
    body = {"prompt": "a", "max_tokens": 1, **others}
    for value in good:
        completion_request({**body, field: value}, MODEL, "small", 12000)
    for value in bad:
        with pytest.raises(RequestError) as refused:
            completion_request({**body, field: value}, MODEL, "small", 12000)
        assert refused.value.status == 400
        assert field in refused.value.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 3, "top_p": 0.5}, "top_k: cannot be set together with top_p"),
        ({"top_p_decay": 0.5}, "top_p_decay: cannot be set without top_p"),
        ({"top_p": 0.5, "top_p_bound": 0.2}, "top_p_bound: cannot be set without top_p_decay"),
        ({"length_penalty": 2.0}, "length_penalty: cannot be set without beam_width"),
        ({"beam_width": 2, "max_tokens": 0, "echo": True, "logprobs": 0}, "beam_width: cannot be combined"),
        ({"beam_width": 2, "top_k": 2}, "beam_width: cannot be combined"),
        ({"beam_width": 2, "top_p": 0.5}, "beam_width: cannot be combined"),
        ({"beam_width": 2, "temperature": 0.5}, "beam_width: cannot be combined"),
        ({"beam_width": 2, "stop": "x"}, "beam_width: cannot be combined"),
        ({"beam_width": 2, "stop_on_eol": True}, "beam_width: cannot be combined"),
        ({"beam_width": 2, "stop_on_double_eol": True}, "beam_width: cannot be combined"),
        ({"beam_width": 2, "echo": True}, "beam_width: cannot be combined"),
        ({"beam_width": 2, "stream": True}, "beam_width: cannot be combined"),
        ({"beam_width": 2, "prompt": ["a", "b"]}, "beam_width: takes one prompt a request"),
        ({"stop_token": 3, "stop_on_eol": True}, "stop_token: cannot be set with stop_on_eol"),
        ({"stop_token": 3, "stop_on_double_eol": True}, "stop_token: cannot be set with stop_on_eol"),
        ({"max_tokens": 0, "echo": True}, "max_tokens: 0 needs echo and logprobs"),
        ({"max_tokens": 0, "logprobs": 1}, "max_tokens: 0 needs echo and logprobs"),
    ],
)
def test_fields_that_exclude_each_other_are_named(fields, message):
    with pytest.raises(RequestError) as refused:
        completion_request({"prompt": "a", "max_tokens": 1, **fields}, MODEL, "small", 12000)
    assert refused.value.message.startswith(message)


def test_a_completion_request_gives_the_settings_of_its_continuations():
    body = {
        "prompt": ["ab", ""],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_p_decay": 0.8,
        "top_p_bound": 0.1,
        "logprobs": 3,
        "echo": True,
        "seed": 4,
        "first_prompt": 7,
        "stop": ["x", "y"],
        "stop_token": 5,
        "prevent_newline_after_colon": True,
    }
    found, _ = completion_request(body, MODEL, "small", 12000)
    assert found == GenerationRequest(
        [[97, 98], [256]],
        Sampling(
            max_new_tokens=9,
            temperature=0.5,
            top_p=0.9,
            top_p_decay=0.8,
            top_p_bound=0.1,
            stop=("x", "y"),
            stop_token=5,
            prevent_newline_after_colon=True,
            top_logprobs=3,
            prompt_logprobs=True,
        ),
        seed=4,
        first_prompt=7,
    )
    greedy, _ = completion_request({"prompt": "a", "temperature": 0, "add_bos": True}, MODEL, "small", 12000)
    assert greedy == GenerationRequest([[256, 97]], Sampling(max_new_tokens=16, greedy=True))


def test_a_request_may_take_exactly_the_limit_of_tokens():
    body = {"prompt": ["aaa", "a"], "max_tokens": 7}
    completion_request(body, MODEL, "small", 20)
    with pytest.raises(RequestError, match="2 prompts of up to 10 tokens each are 20, more than the 19"):
        completion_request(body, MODEL, "small", 19)
    body = {"prompts": ["aaa", "a"], "tokens_to_generate": 7}
    megatron_request(body, MODEL, 20)
    with pytest.raises(RequestError, match=r"Too many tokens\.  20 is greater than 19"):
        megatron_request(body, MODEL, 19)


def test_log_probabilities_of_prompts_are_refused_for_an_encoder_decoder():
    model = small_model()
    model.model = EncoderDecoder(model.model, 0)
    with pytest.raises(RequestError, match="logprobs asks for those of the prompt"):
        megatron_request({"prompts": ["a"], "logprobs": True}, model, 12000)
    with pytest.raises(RequestError, match="echo: with logprobs it asks for the prompt's"):
        completion_request({"prompt": "a", "echo": True, "logprobs": 0}, model, "small", 12000)
