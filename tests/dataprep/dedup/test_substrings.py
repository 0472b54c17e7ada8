"""`mt data dedup-substrings` against brute force over all windows of a corpus."""

import collections
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.dataprep.dedup.substrings import DedupSubstringsConfig, cut_spans, dedup_substrings, merge_windows
from mt.dataprep.dedup.token_windows import tokens
from mt.tests.dataprep.dedup.test_token_windows import PIECES, TOKEN

TEXTS = st.lists(PIECES, max_size=30).map("".join)


def write(folder, texts):
    """Writes each text to its own file, of which four at most share a shard of the least size."""
    for number, text in enumerate(texts):
        (folder / f"{number:02d}.jsonl").write_text(json.dumps({"id": str(number), "text": text}) + "\n")
    return tuple(map(str, sorted(folder.glob("*.jsonl"))))


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def run(folder, texts, **settings):
    """({id: text} of the documents that are left, the manifest)."""
    found = dedup_substrings(
        DedupSubstringsConfig(
            **{
                "input": write(folder, texts),
                "output": str(folder / "out"),
                "workers": 1,
                "shard_bytes": 1 << 16,
                **settings,
            }
        )
    )
    kept = {}
    for path in sorted((folder / "out").glob("[0-9]*.jsonl")):
        kept |= {row["id"]: row["text"] for row in rows(path)}
    return kept, found


def brute_force(texts, length, keep):
    """{id: tokens that are left} by a table of all windows."""
    every = [TOKEN.findall(unicodedata.normalize("NFC", text)) for text in texts]
    windows = [[tuple(t[i : i + length]) for i in range(len(t) - length + 1)] for t in every]
    counts = collections.Counter(window for some in windows for window in some)
    seen, left = set(), {}
    for number, text in enumerate(every):
        cut = set()
        for place, window in enumerate(windows[number]):
            if window in seen or (keep == "none" and counts[window] > 1):
                cut |= set(range(place, place + length))
            seen.add(window)
        left[str(number)] = [token for place, token in enumerate(text) if place not in cut]
        if cut and not left[str(number)]:
            del left[str(number)]
    return left


def tokens_of(text):
    return TOKEN.findall(unicodedata.normalize("NFC", text))


@settings(max_examples=15)
@given(
    st.lists(TEXTS, min_size=1, max_size=6),
    st.integers(2, 9),
    st.sampled_from(["first", "none"]),
    st.sampled_from([1, 1 << 23]),
)
def test_what_is_cut_is_what_brute_force_finds(tmp_path_factory, texts, length, keep, range_keys):
    texts = [*texts, "x y z"]  # so that a document is left
    folder = tmp_path_factory.mktemp("substrings")
    expected = brute_force(texts, length, keep)
    kept, _ = run(folder, texts, min_tokens=length, keep=keep, range_keys=range_keys)
    assert {name: tokens_of(text) for name, text in kept.items()} == expected


@given(TEXTS, st.data())
def test_cutting_leaves_all_other_tokens(text, data):
    spans = tokens([text])[1]
    count = spans.shape[1]
    length = data.draw(st.integers(1, 3))
    starts = sorted(data.draw(st.sets(st.integers(0, max(0, count - length)), max_size=4)))
    if count < length or not starts:
        return
    merged = merge_windows(np.array(starts), length)
    cut = {place for start, end in merged for place in range(start, end)}
    assert cut == {place for start in starts for place in range(start, start + length)}
    left = [token for place, token in enumerate(TOKEN.findall(text)) if place not in cut]
    assert TOKEN.findall(cut_spans(text, spans, merged)) == left or not left


def test_line_breaks_around_a_cut_stay(tmp_path):
    repeated = "one two three four five"
    kept, found = run(
        tmp_path, [f"{repeated} end", f"First.\n\n{repeated} last", f"a {repeated}\nb"], min_tokens=5
    )
    assert kept == {"0": f"{repeated} end", "1": "First.\n\nlast", "2": "a\nb"}
    assert found["cut"] == {"documents": 2, "spans": 2, "tokens": 10}
    logged = [row for path in sorted((tmp_path / "out/cut").iterdir()) for row in rows(path)]
    assert logged[0] == {"id": "1", "spans": 1, "tokens": 5, "example": f"{repeated} last"}


def test_text_that_repeats_itself_is_cut_from_the_second_time(tmp_path):
    kept, _ = run(tmp_path, ["a a a a a", "b c b c b c"], min_tokens=4)
    assert kept == {"0": "a", "1": "b c"}


def test_a_document_of_repeated_text_is_removed(tmp_path):
    kept, found = run(tmp_path, ["a b c d", "a b c d", "a  b\nc d"], min_tokens=3)
    assert kept == {"0": "a b c d"}
    assert found["counts"]["removed"] == {"repeated": 2}


@pytest.mark.parametrize("setting", [{"min_tokens": 1}, {"keep": "last"}, {"range_keys": 0}])
def test_wrong_settings_are_refused(setting):
    with pytest.raises(UserError):
        DedupSubstringsConfig(input=("a",), output="b", **setting)
