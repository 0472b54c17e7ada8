"""Many requests in one batch, a full queue, a failing model, shutdown."""

import concurrent.futures

import httpx
import pytest

from mt.eval.generation.beam_search import BeamSearch
from mt.eval.generation.sampling import Continuation, Sampling
from mt.eval.server.engine import Engine, Job, QueueFull, ShuttingDown
from mt.tests.eval.server.running_server import slow_server, small_model, until


def test_64_simultaneous_clients_share_steps_and_get_the_texts_of_each_client_alone(server):
    before = server.engine.steps.copy()
    request = lambda n: server.complete(prompt=f"client {n}", max_tokens=20, seed=n).json()["choices"][0]
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        together = list(pool.map(request, range(64)))
    assert max(server.engine.steps - before) > 4, "several requests share a step"
    assert [choice["token_ids"] for choice in together[::8]] == [
        request(n)["token_ids"] for n in range(0, 64, 8)
    ]


def test_a_full_queue_refuses_a_request_with_retry_after():
    with (
        slow_server(max_batch_size=1, max_queue=2) as server,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        request = lambda: pool.submit(server.complete, prompt="a", max_tokens=4, temperature=0)
        with server.model.model.paused():  # no request ends, on slow machines too
            running = [request()]
            until(lambda: server.engine.running == 1)
            running += [request(), request()]
            until(lambda: server.engine.waiting == 2)
            refused = server.complete(prompt="a", max_tokens=1)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert "the queue is full (2 of 2 texts wait)" in refused.json()["error"]["message"]
        assert [r.result().status_code for r in running] == [200] * 3


def test_a_failing_model_fails_its_requests_and_the_server_continues(capfd):
    with slow_server() as server:
        server.model.model.fails = True
        reply = server.complete(prompt="a", max_tokens=3)
        assert reply.status_code == 500
        assert "the model failed (RuntimeError)" in reply.json()["error"]["message"]
        server.model.model.fails = False
        assert server.complete(prompt="a", max_tokens=3).status_code == 200
        assert "out of memory" in capfd.readouterr().err


def engine_of(**limits):
    return Engine(small_model(), **{"max_batch_size": 4, "max_tokens": 1000, "max_queue": 3, **limits})


def job_of(engine, count=1, tokens=5, **more):
    """(a job of greedy continuations, a list with one entry for each notification)."""
    notified = []
    tokenizer = engine.model.tokenizer
    continuations = [
        Continuation([97 + n], Sampling(max_new_tokens=tokens, greedy=True), tokenizer) for n in range(count)
    ]
    return Job(continuations, lambda: notified.append(True), **more), notified


def test_the_queue_takes_exactly_its_limit_of_texts():
    engine = engine_of()
    engine.submit(job_of(engine, count=2)[0])
    with pytest.raises(QueueFull):
        engine.submit(job_of(engine, count=2)[0])
    engine.submit(job_of(engine, count=1)[0])
    assert engine.waiting == 3
    with pytest.raises(QueueFull):
        engine.submit(job_of(engine, count=1)[0])


def test_a_beam_search_counts_as_one_text():
    engine = engine_of(max_queue=1)
    model = engine.model
    search = BeamSearch(model.model, model.tokenizer, [97], Sampling(max_new_tokens=3), beam_width=2)
    job = Job([], lambda: None, search=search)
    engine.submit(job)
    assert engine.waiting == 1
    engine.close(60)
    engine.run()
    assert job.finished
    assert job.error is None
    assert len(search.found) == 2


def test_beam_searches_wait_for_room_and_stay_in_the_count_of_the_queue():
    engine = engine_of(max_batch_size=4, max_queue=8)
    model, most, jobs = engine.model, [], []
    for _ in range(6):
        search = BeamSearch(model.model, model.tokenizer, [97], Sampling(max_new_tokens=3), beam_width=2)
        jobs.append(Job([], lambda: most.append(engine.running), search=search))
        engine.submit(jobs[-1])
    step = engine._step

    def counted_step():
        step()
        most.append(engine.running)
        assert engine.waiting + engine.running // 2 + sum(job.finished for job in jobs) == 6

    engine._step = counted_step
    engine.close(60)
    engine.run()
    assert all(job.finished and job.error is None and len(job.search.found) == 2 for job in jobs)
    assert max(most) == 4, "two searches of two beams fill a batch of four rows"


def test_beam_searches_together_hold_no_more_positions_than_the_limit():
    engine = engine_of(max_batch_size=64, max_tokens=20)
    model = engine.model
    for _ in range(3):  # each has 2 rows of 5 positions
        search = BeamSearch(model.model, model.tokenizer, [97, 98], Sampling(max_new_tokens=3), beam_width=2)
        engine.submit(Job([], lambda: None, search=search))
    engine._start_searches()
    assert (engine.running, engine.waiting) == (4, 1)


def test_jobs_that_finish_within_the_grace_period_are_notified_once():
    engine = engine_of()
    job, notified = job_of(engine, count=2)
    engine.submit(job)
    engine.close(60)
    with pytest.raises(ShuttingDown):
        engine.submit(job_of(engine)[0])
    engine.run()
    assert (job.finished, job.error) == (True, None)
    assert [c.ended for c in job.continuations] == ["length"] * 2
    assert notified == [True]
    assert (engine.waiting, engine.running) == (0, 0)
    assert engine.steps == {2: 4, 0: 1}, "4 steps leave two rows, the fifth leaves none"


def test_a_streamed_job_is_notified_of_every_token():
    engine = engine_of()
    job, notified = job_of(engine, streamed=True)
    engine.submit(job)
    engine.close(60)
    engine.run()
    assert len(notified) == 5


def test_jobs_that_do_not_finish_in_time_end_with_an_error():
    engine = engine_of()
    job, notified = job_of(engine, tokens=100)
    engine.submit(job)
    engine.close(-1)
    engine.run()
    assert (job.finished, job.error) == (True, "the server is shutting down")
    assert notified == [True]
    assert not engine.batch.rows
    assert not engine.batch.waiting


def test_a_cancelled_job_leaves_the_batch_and_the_others_finish():
    engine = engine_of()
    cancelled_job, _ = job_of(engine, tokens=50)
    kept, _ = job_of(engine)
    engine.submit(cancelled_job)
    engine.submit(kept)
    engine.cancel(cancelled_job)
    engine.close(60)
    engine.run()
    assert (cancelled_job.finished, cancelled_job.error) == (True, "cancelled")
    assert (kept.finished, kept.error) == (True, None)
    assert len(cancelled_job.continuations[0].ids) < 50
    engine.cancel(kept)
    assert kept.error is None, "cancelling a finished job changes nothing"


def turns(engine, clients, tokens=1):
    """The clients of the jobs, submitted in this order, in the order in which they end."""
    ended = []
    for client in clients:
        job, _ = job_of(engine, tokens=tokens, client=client)
        job.notify = lambda client=client: ended.append(client)
        engine.submit(job)
    engine.close(60)
    engine.run()
    return "".join(ended)


def test_clients_are_served_in_turn_whoever_asked_for_more():
    assert turns(engine_of(max_batch_size=1, max_queue=2000), "a" * 1000 + "bbc") == "abcab" + "a" * 998


def test_the_texts_of_one_request_are_as_many_turns():
    engine = engine_of(max_batch_size=1, max_queue=100)
    order = []
    for client, count in (("a", 50), ("b", 1)):
        job, _ = job_of(engine, tokens=1, count=count, client=client)
        job.notify = lambda client=client: order.append((client, sum(engine.steps.values())))
        engine.submit(job)
    engine.close(60)
    engine.run()
    assert order == [("b", 2), ("a", 51)]


def test_a_full_queue_has_room_for_a_client_with_less_in_it():
    engine = engine_of(max_queue=4)
    a = [job_of(engine, client="a") for _ in range(4)]
    for job, _ in a:
        engine.submit(job)
    b = [job_of(engine, client="b")[0] for _ in range(3)]
    engine.submit(b[0])
    engine.submit(b[1])
    assert [job.crowded_out for job, _ in a] == [False, False, True, True], "the newest ones"
    assert [len(notified) for _, notified in a] == [0, 0, 1, 1]
    with pytest.raises(QueueFull):
        engine.submit(b[2])  # then b would have more than a
    with pytest.raises(QueueFull):
        engine.submit(job_of(engine, client="a")[0])
    with pytest.raises(QueueFull):
        engine.submit(job_of(engine, client="c", count=3)[0])
    engine.close(60)
    engine.run()
    assert [job.error is None for job in [*(one for one, _ in a), *b[:2]]] == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    assert engine.waiting == engine.running == 0


def test_a_job_that_was_crowded_out_is_answered_with_503_and_retry_after():
    with slow_server(max_batch_size=1, max_queue=1) as server:
        ask = lambda: httpx.post(
            f"http://127.0.0.1:{server.address[1]}/v1/completions",
            json={"prompt": "a", "max_tokens": 1},
            timeout=60,
        )
        pool = concurrent.futures.ThreadPoolExecutor(4)
        with server.model.model.paused():
            first = pool.submit(ask)
            until(lambda: server.engine.running == 1)
            waiting = pool.submit(ask)
            until(lambda: server.engine.waiting == 1)
            (queued,) = server.engine._queue
            server.engine._jobs[id(queued)].crowded_out = True
            server.engine._end(server.engine._jobs[id(queued)], "the queue is full")
            assert (waiting.result().status_code, waiting.result().headers["retry-after"]) == (503, "1")
        assert first.result().status_code == 200
