"""`mt generate --url`, compared with `mt generate --load` of the same model."""

import socket

import pytest

from mt.core.config import UserError
from mt.eval.generation.generate import GenerateConfig, generate
from mt.tests.eval.server.running_server import small_model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"greedy": True},
        {"top_p": 0.8, "top_p_decay": 0.9, "top_p_bound": 0.1},
        {"beam_width": 3},
        {"stop": ("e",), "temperature": 2.0},
        {"add_bos": True, "stop_on_eol": True},
    ],
)
def test_the_client_returns_the_texts_of_the_local_model(server, monkeypatch, settings):
    request = {"prompts": ("ab", "", "naïve", "ab"), "tokens_to_generate": 15, **settings}
    if "beam_width" in settings:
        request["prompts"] = ("ab",)
    monkeypatch.setattr("mt.eval.generation.generate.open_checkpoint", lambda path: None)
    monkeypatch.setattr("mt.eval.generation.generate.open_generator", lambda *_: small_model())
    there, here = (
        generate(GenerateConfig(**where, **request)) for where in ({"url": server.url}, {"load": "x"})
    )
    assert there["counts"] == here["counts"]
    for mine, own in zip(there["samples"], here["samples"]):
        for name in mine:
            if name == "beams":
                assert [b["tokens"] for b in mine[name]] == [b["tokens"] for b in own[name]]
            else:
                assert (
                    mine[name] == pytest.approx(own[name], abs=1e-4)
                    if name == "logprobs"
                    else mine[name] == own[name]
                )


def test_a_wrong_address_or_request_is_named_by_the_client(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="no answer of `mt serve`"):
            generate(GenerateConfig(url=f"http://127.0.0.1:{free.getsockname()[1]}", prompts=("a",)))
    with pytest.raises(UserError, match="must begin with http"):
        generate(GenerateConfig(url="localhost:5000", prompts=("a",)))
    with pytest.raises(UserError, match=r"the model has 128 positions \(HTTP 400\)"):
        generate(GenerateConfig(url=server.url, prompts=("a",), tokens_to_generate=500))
