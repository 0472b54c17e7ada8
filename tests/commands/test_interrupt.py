"""Ctrl-C at any moment: one line, exit code 130, no traceback, and the same command continues."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mt.commands import interrupt

LINE = f"mt: {interrupt.MESSAGE}"


def run(code: str, **how) -> subprocess.CompletedProcess:
    """Runs code in a process that handles SIGINT as one of a terminal does; pytest may ignore it."""
    code = f"import os, signal, sys, time\nfrom mt.commands import interrupt\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=default_sigint,
        capture_output=True,
        text=True,
        check=False,
        **how,
    )


def default_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


RUN = """
from mt import cli
def work(arguments, output):
    {work}
    return 0
cli._invoke = work
cli.main([])
"""


def test_an_interrupt_that_a_destructor_swallows_ends_the_command():
    work = """
    class Careless:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    Careless()
    time.sleep(60)
"""
    ended = run(RUN.format(work=work))
    assert (ended.returncode, ended.stderr) == (130, LINE + "\n")


def test_an_interrupt_that_a_library_makes_an_error_of_ends_the_command_with_the_same_line():
    work = """
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        raise RuntimeError("a compiler failed")
"""
    ended = run(RUN.format(work=work))
    assert (ended.returncode, ended.stderr) == (130, LINE + "\n")


def test_an_interrupt_after_the_command_is_silent():
    ended = run(RUN.format(work="import atexit; atexit.register(os.kill, os.getpid(), signal.SIGINT)"))
    assert (ended.returncode, ended.stderr) == (130, "")


def test_a_signal_that_is_ignored_stays_ignored():
    code = (
        "signal.signal(signal.SIGINT, signal.SIG_IGN); interrupt.install(); print(interrupt.is_installed())"
    )
    assert run(code).stdout == "False\n"


def test_a_worker_never_sees_the_interrupt_and_ends_with_its_parent(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import os, signal, time, sys\n"
        "def wait(n):\n"
        "    os.write(1, b'%d\\n' % os.getpid())\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    from mt.core.executor import processes\n"
        "    with processes(2) as pool:\n"
        "        list(pool.map(wait, range(2)))\n"
    )
    job = subprocess.Popen(
        [sys.executable, script],
        preexec_fn=default_sigint,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    workers = [int(job.stdout.readline()) for _ in range(2)]
    os.killpg(job.pid, signal.SIGINT)  # a terminal signals the whole group
    _, said = job.communicate()
    assert said.count("Traceback") == 1, said  # the parent's; its caller here prints no line instead
    assert "Process Spawn" not in said
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    words = Path(__file__).read_text(encoding="utf-8").split()
    generator = random.Random(7)
    for part in range(4):
        with open(folder / f"{part}.jsonl", "w") as file:
            for n in range(4000):
                text = " ".join(generator.choices(words, k=200))
                file.write(json.dumps({"id": f"{part}-{n}", "text": text}) + "\n")
    return folder


def commands(corpus: Path, out: Path) -> dict[str, list[str]]:
    tokenizer = ["--tokenizer-type", "ByteLevelTokenizer"]
    pair = out / "pair"
    return {
        "clean": ["data", "clean", "--input", corpus, "--output", out / "clean"],
        "dedup": ["data", "dedup", "--input", corpus, "--output", out / "dedup"],
        "tokenize": ["data", "tokenize", "--input", corpus, "--output-prefix", pair, *tokenizer],
        "train": [
            *["train", "--preset", "tiny", "--data-path", corpus / "pair_text_document", *tokenizer],
            *["--train-iters", "100000", "--save", out / "model"],
        ],
    }


# Tells when Python has started: until then Ctrl-C meets no code of mt.
STARTED = """
import sys
from mt.commands import interrupt
interrupt.install()
try:
    print("started", file=sys.stderr, flush=True)
    from mt.__main__ import main
except KeyboardInterrupt:
    interrupt.end()
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clean", "dedup", "tokenize", "train"])
def test_a_command_that_is_interrupted_at_any_moment_ends_with_one_line(name, corpus, tmp_path):
    pytest.importorskip("torch")
    if name == "train" and not (corpus / "pair_text_document.idx").exists():
        made = [*commands(corpus, corpus)["tokenize"], "--workers", "1"]
        subprocess.run([sys.executable, "-m", "mt", *map(str, made)], check=True, capture_output=True)
    generator = random.Random(f"{name} 1")
    for attempt in range(8):
        command = [sys.executable, "-c", STARTED, *map(str, commands(corpus, tmp_path / str(attempt))[name])]
        job = subprocess.Popen(
            command,
            preexec_fn=default_sigint,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert job.stderr.readline() == "started\n"
        time.sleep(generator.random() * 8)
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGINT)
        out, said = job.communicate()
        assert "Traceback" not in said, said
        # As Python ends it takes the default action of the signal, which a shell shows as 130 too.
        assert job.returncode in (0, 130, -signal.SIGINT), said
        if job.returncode == 130:
            assert out == ""
            stopped = [x for x in said.splitlines() if x == LINE or "stopped by SIGINT" in x]
            assert len(stopped) == 1, said
