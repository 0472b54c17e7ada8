"""Many requests in one batch, a full queue, a model that fails."""

import concurrent.futures

from mt.tests.eval.server.running_server import slow_server, until


def test_64_clients_at_once_get_what_each_would_get_alone_and_grow_together(server):
    before = server.engine.steps.copy()
    ask = lambda n: server.complete(prompt=f"client {n}", max_tokens=20, seed=n).json()["choices"][0]
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        together = list(pool.map(ask, range(64)))
    assert max(server.engine.steps - before) > 4, "they shared their steps"
    assert [choice["token_ids"] for choice in together[::8]] == [ask(n)["token_ids"] for n in range(0, 64, 8)]


def test_a_full_queue_refuses_and_says_when_to_come_again():
    with (
        slow_server(max_batch_size=1, max_queue=2) as server,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        ask = lambda: pool.submit(server.complete, prompt="a", max_tokens=4, temperature=0)
        with server.model.model.held():  # so that nothing ends, however slow this machine is
            running = [ask()]
            until(lambda: server.engine.running == 1)
            running += [ask(), ask()]
            until(lambda: server.engine.waiting == 2)
            refused = server.complete(prompt="a", max_tokens=1)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert "the queue is full (2 of 2 texts wait)" in refused.json()["error"]["message"]
        assert [r.result().status_code for r in running] == [200] * 3


def test_a_model_that_fails_fails_its_requests_and_the_server_goes_on(capfd):
    with slow_server() as server:
        server.model.model.fails = True
        reply = server.complete(prompt="a", max_tokens=3)
        assert reply.status_code == 500
        assert "the model failed (RuntimeError)" in reply.json()["error"]["message"]
        server.model.model.fails = False
        assert server.complete(prompt="a", max_tokens=3).status_code == 200
        assert "out of memory" in capfd.readouterr().err
