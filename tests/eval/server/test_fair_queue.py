"""Clients take turns, compared with lists that are searched."""

from hypothesis import given
from hypothesis import strategies as st

from mt.eval.server.fair_queue import FairQueue


@given(st.lists(st.tuples(st.sampled_from("+-x"), st.sampled_from("abc"), st.integers(0, 9)), max_size=60))
def test_a_client_waits_for_at_most_one_item_of_each_other_client(actions):
    queue: FairQueue[tuple] = FairQueue()
    queued: list[tuple] = []  # (client, number) in the order of their coming
    turns: list[str] = []  # clients with items, the next first
    for number, (action, client, place) in enumerate(actions):
        if action == "+":
            queue.append(client, (client, number))
            queued.append((client, number))
            turns += [client] * (client not in turns)
        elif action == "-" and queued:
            expected = next(item for item in queued if item[0] == turns[0])
            assert queue.first() == expected
            assert queue.popleft() == expected
            queued.remove(expected)
            turns.append(turns.pop(0))
        elif action == "x" and queued:
            item = queued.pop(place % len(queued))
            found = next(one for one in queue.of(item[0]) if one == item)
            assert queue.remove(item[0], found)
            assert not queue.remove(item[0], found)
        turns = [one for one in turns if any(item[0] == one for item in queued)]
        assert len(queue) == len(queued)
        assert sorted(queue) == sorted(queued)
        assert queue.counts() == {one: sum(item[0] == one for item in queued) for one in turns}
