"""A Redis server on loopback for the tests of streams, which they kill and start again."""

import shutil
import socket
import subprocess
import time

import pytest


class RedisServer:
    """redis-server with its data in a folder, on a free port of 127.0.0.1; every write is on disk."""

    def __init__(self, folder, *options):
        if shutil.which("redis-server") is None:
            pytest.skip("redis-server is missing: apt-get install redis-server")
        pytest.importorskip("redis", reason="the package redis is missing: pip install 'mt-lm[stream]'")
        folder.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        saved = ["--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self.command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), *saved, *options]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    @property
    def client(self):
        import redis

        return redis.Redis(port=self.port)

    def start(self):
        import redis

        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        for _ in range(200):
            try:
                self.client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.05)
        raise AssertionError("redis-server does not answer")

    def kill(self):
        self.process.kill()
        self.process.wait()
