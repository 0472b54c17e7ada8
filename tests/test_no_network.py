"""The way from text to a generating model without a network: no command looks anything up or connects.

An audit hook in every process of the run (https://docs.python.org/3/library/audit_events.html) notes and
refuses what would leave this machine. Where the system allows it, the run also has a network of its own, with
nothing in it, so that libraries that do not ask Python are held too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HOOK = """
import os, sys

NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
           "socket.gethostbyaddr", "socket.getnameinfo", "urllib.Request", "http.client.connect")

def hook(event, arguments):
    if event not in NETWORK:
        return
    place = arguments[1] if event.startswith(("socket.connect", "socket.send", "http")) else arguments[0]
    host = place[0] if isinstance(place, tuple) else place
    if isinstance(host, bytes):
        host = host.decode("latin-1")
    if host is None or str(host) in ("", "localhost", "::1") or str(host).startswith(("127.", "/")):
        return
    with open(os.environ["MT_TEST_NETWORK_LOG"], "a") as log:
        print(event, arguments[-2:], file=log)
    raise OSError("there is no network in this test")

sys.addaudithook(hook)
"""
COMMANDS = """
import json, sys
from mt import cli

for command in json.loads(sys.argv[1]):
    try:
        cli.main(command)
    except SystemExit as end:
        if end.code:
            sys.exit(f"{command}: exit code {end.code}")
"""


@pytest.fixture(scope="module")
def without_network(tmp_path_factory):
    """run(code, *arguments) -> (the finished process, the attempts to reach a network)."""
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(HOOK)
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    try:
        works = subprocess.run([*alone, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        works = False
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(code, *arguments):
        (log := folder / "log").write_text("")
        done = subprocess.run(
            [*(alone if works else []), sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
            env={**kept, "PYTHONPATH": path, "MT_TEST_NETWORK_LOG": str(log)},
        )
        return done, log.read_text()

    return run


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), 1)",
        "import socket; socket.getaddrinfo('pypi.example', 443)",
        "import urllib.request; urllib.request.urlopen('http://192.0.2.1/')",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))",
    ],
)
def test_the_hook_holds_what_leaves_this_machine(without_network, code):
    done, attempts = without_network(code)
    assert done.returncode == 1
    assert attempts


def test_clean_dedup_tokenize_train_and_generate_need_no_network(without_network, tmp_path, speeches_file):
    at = lambda name: str(tmp_path / name)
    workers = ["--workers", "2"]
    tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", at("tokenizer")]
    commands = [
        [
            "data",
            "clean",
            "--input",
            str(speeches_file),
            "--output",
            at("clean"),
            "--preset",
            "prose",
            *workers,
        ],
        ["data", "dedup", "--input", at("clean"), "--output", at("dedup"), *workers],
        [
            "data",
            "train-tokenizer",
            "--input",
            at("dedup"),
            "--output",
            at("tokenizer"),
            "--vocab-size",
            "400",
        ],
        ["data", "tokenize", "--input", at("dedup"), "--output-prefix", at("tokens"), *tokenizer, *workers],
        ["train", "--data-path", at("tokens_text_document"), "--save", at("model"), *tokenizer]
        + ["--num-layers", "1", "--hidden-size", "16", "--num-attention-heads", "2", "--seq-length", "32"]
        + ["--micro-batch-size", "2", "--global-batch-size", "2", "--train-iters", "2", "--lr", "1e-3"],
        ["generate", "--load", at("model"), "--prompts", "The", "--tokens-to-generate", "4"],
        ["doctor"],
    ]
    done, attempts = without_network(COMMANDS, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    assert attempts == ""
    assert "\nThe" in done.stdout, "a continuation of the prompt"


@pytest.mark.slow
def test_no_module_reaches_a_network_when_it_is_imported(without_network):
    code = (
        "import importlib, mt.commands.table\n"
        "for command in mt.commands.table.COMMANDS.values(): importlib.import_module(f'mt.{command.module}')"
    )
    done, attempts = without_network(code)
    assert done.returncode == 0, done.stderr
    assert attempts == ""
