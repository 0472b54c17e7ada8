"""Requests that are refused, with Megatron-LM's messages and with OpenAI's fields."""

import json

import pytest

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
def test_what_megatrons_request_may_not_be_is_refused_with_its_message(server, body, message):
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
def test_every_other_field_of_megatrons_is_honoured(server, field):
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
def test_what_a_completion_may_not_be_is_refused_in_one_line(server, body, status, message):
    reply = server.complete(**body)
    assert reply.status_code == status
    assert message in reply.json()["error"]["message"]
