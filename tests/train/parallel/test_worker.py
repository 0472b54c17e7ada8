"""A process of `mt launch` (test_launcher.py kills a launcher)."""

import os
import subprocess
import sys


def start(*arguments: str, launcher: int) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mt.train.parallel.worker", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "MT_LAUNCHER_PID": str(launcher)},
    )


def test_it_runs_a_module_as_python_does(tmp_path, monkeypatch):
    (tmp_path / "shows.py").write_text(
        "import sys\n"
        "if __name__ == '__main__':\n"
        "    print(sys.argv[1:], __spec__.name, sys.modules['__main__'].__spec__.name)\n"
        "    sys.exit(7)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    ended = start("shows", "a", "--b", launcher=os.getpid())
    assert (ended.returncode, ended.stdout) == (7, "['a', '--b'] shows shows\n"), ended.stderr


def test_it_ends_at_once_if_the_launcher_has_ended_before():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ended = start("this", launcher=gone.pid)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")
