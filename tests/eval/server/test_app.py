"""The command: its address, and its shutdown under load."""

import concurrent.futures
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from mt.core.config import UserError
from mt.eval.server.app import listen
from mt.tests.eval.server.running_server import until


def test_an_address_in_use_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"cannot be listened on .* choose another --port"):
            listen("127.0.0.1", taken.getsockname()[1])


ROOT = Path(__file__).parents[3]


SERVE = """
import sys
from mt.tests.eval.server.running_server import SlowModel, small_model
from mt.eval.server import app
model = small_model(1024)
model.model = SlowModel(model.model)
app.open_checkpoint = lambda path: None
app.open_generator = lambda *_: model
app.prepare_for_inference = lambda model, **_: model
print(app.serve(app.ServeConfig(load="small", port=int(sys.argv[1]), shutdown_grace=6))["text"])
"""


def test_sigterm_under_load_finishes_short_requests_ends_long_ones_with_503_and_exits_0():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def up():
        try:
            return client.get("/health").status_code == 200
        except httpx.TransportError:
            assert process.poll() is None, process.stderr.read()
            return False

    def request(n):
        body = {"prompt": f"client {n}", "max_tokens": 80 if n < 4 else 1000, "temperature": 0}
        if n % 2:
            reply = client.post("/v1/completions", json=body)
            return (
                reply.status_code
                if reply.status_code != 200
                else len(reply.json()["choices"][0]["token_ids"])
            )
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
            data = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
        return len(data) if data[-1] == "[DONE]" else json.loads(data[-1])["error"]["code"]

    try:
        until(up)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            requests = [pool.submit(request, n) for n in range(8)]
            until(lambda: "mt_running 8.0" in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            answers = [one.result() for one in requests]
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert answers[1] == answers[3] == 80
    assert all(8 < answers[n] <= 81 for n in (0, 2)), "pieces of text, and [DONE]"
    assert answers[4:] == [503] * 4
    assert "served" in out
    assert "Traceback" not in err
