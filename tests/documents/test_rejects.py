"""Records that cannot be read: raised or collected, in bounded memory."""

import pytest

from mt.core.config import UserError
from mt.documents.rejects import Reject, Rejects, set_aside
from mt.documents.sharding import Shard


def test_rejects_in_memory_are_bounded(monkeypatch):
    monkeypatch.setattr("mt.documents.rejects.MAX_REJECTS", 5)
    monkeypatch.setattr("mt.documents.rejects.REJECT_BYTES", 5000)
    for _ in range(2):
        rejects = Rejects()
        for number in range(5):
            rejects.append(Reject("a", f"line {number}", "why", "x" * 2000))
        assert [len(r.raw) for r in rejects] == [2000, 2000, 1000, 1000, 1000]
        with pytest.raises(UserError, match=r"^a: 5 records cannot be read; check the input$"):
            rejects.append(Reject("a", "line 6", "why", ""))
        rejects.clear()
        rejects.append(Reject("a", "line 7", "why", "x" * 2000))
        assert [len(r.raw) for r in rejects] == [2000]


@pytest.mark.parametrize(
    ("raw", "shown"), [(b"a\xc3\xa9", "a\u00e9"), (b"a\xff", "base64:Yf8="), ({"n": 1}, '{"n":1}')]
)
def test_a_record_is_raised_or_passed_on_with_its_place(raw, shown):
    skip = Shard("a.jsonl", 0, 1, 1, "text", "skip", 100, "lines", "a.jsonl")
    found = []
    set_aside(skip, ", line 3", "is bad", raw, found.append)
    assert found == [Reject("a.jsonl", "line 3", "is bad", shown)]
    with pytest.raises(UserError, match=r"^a.jsonl, line 3: is bad; mend it, or pass --on-error skip"):
        set_aside(skip, ", line 3", "is bad", raw, None)
