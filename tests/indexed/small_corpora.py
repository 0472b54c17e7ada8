"""Small corpora of random words, and `mt data tokenize` on them."""

import json
import random
from pathlib import Path

from mt.indexed.build import TokenizeConfig, tokenize
from mt.indexed.format import IndexedDataset

# fmt: off
WORDS = (
    "the", "a", "river", "hill", "quick", "slow", "fox", "dog", "runs", "rests", "near", "over", "under",
    "field", "of", "barley", "naïve", "🙂",
)
# fmt: on
BYTES = {"tokenizer_type": "ByteLevelTokenizer"}


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def prose(count, seed=0):
    generator = random.Random(seed)
    return [
        {"text": " ".join(generator.choices(WORDS, k=generator.randint(0, 60))), "n": i} for i in range(count)
    ]


def run(tmp_path, records, name="p", **settings):
    path = records if isinstance(records, str) else write(tmp_path / f"{name}.jsonl", records)
    summary = tokenize(
        TokenizeConfig(
            input=(path,), output_prefix=str(tmp_path / name), **{"workers": 1, **BYTES, **settings}
        )
    )
    return summary, IndexedDataset(tmp_path / f"{name}_text_document")


def files(prefix):
    return [Path(f"{prefix}.{s}").read_bytes() for s in ("bin", "idx")]
