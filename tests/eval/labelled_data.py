"""Small files in the published formats of RACE, MNLI and QQP, about animals and their colours."""

import json

import numpy as np

COLOURS, ANIMALS = ("red", "blue", "green", "black", "white"), ("cat", "dog", "bird", "fish", "horse")


WORDS = (
    *COLOURS,
    *ANIMALS,
    "what",
    "colour",
    "is",
    "the",
    "?",
    ".",
    "not",
    "there",
    "a",
    "where",
    "in",
    "place",
    "big",
    "it",
    "so",
)


def write_mnli(path, count, seed, *, test=False):
    random = np.random.default_rng(seed)
    lines = [
        "\t".join(
            ["index", *["x"] * 7, "sentence1", "sentence2", *([] if test else ["label1", "gold_label"])]
        )
    ]
    for i in range(count):
        kind, colour, animal = random.integers(3), random.choice(COLOURS), random.choice(ANIMALS)
        second = (f"the {animal} is not {colour}", f"there is a {animal}", "it is so big .")[kind]
        label = ("contradiction", "entailment", "neutral")[kind]
        lines.append(
            "\t".join(
                [str(i), *["x"] * 7, f"the {animal} is {colour}", second, *([] if test else [label, label])]
            )
        )
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_race(folder, count, seed):
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        animal, options = random.choice(ANIMALS), random.permutation(COLOURS)[:4].tolist()
        right = int(random.integers(4))
        line = {
            "article": f"The {animal} is  {options[right]} .\n It is so .",
            "questions": [f"the {animal} is _ .", f"what colour is the {animal} ?"],
            "options": [options, options[::-1]],
            "answers": ["ABCD"[right], "ABCD"[3 - right]],
            "id": f"high{i}.txt",
        }
        (folder / f"{i}.txt").write_text(json.dumps(line) + "\n")
    return str(folder)


def write_qqp(path, rows, header="id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"):
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    return str(path)
