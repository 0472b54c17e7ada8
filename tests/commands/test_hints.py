"""What is said after an unknown name. A wrong hint is worse than none."""

import re

import pytest

from mt.commands import flags, hints, table
from mt.commands.flags import Flag
from mt.core.config import UserError


def names_of(path: table.Path) -> set[str]:
    """Every flag of a command."""
    found = flags.parameters(table.load(path)[1])
    return {name for p in found if isinstance(p, Flag) for name in (*p.opts, *p.secondary_opts)}


@pytest.fixture(scope="module")
def known() -> dict[table.Path, set[str]]:
    pytest.importorskip("torch", reason="the flags of most commands need the extra `train`")
    return {path: names_of(path) for path in table.COMMANDS if path not in table.RAW}


def quoted(text: str) -> list[list[str]]:
    """The words of the commands in backticks."""
    return [m.split()[1:] for m in re.findall(r"`(mt [^`]*)`", text)]


def check_command(words: list[str], known: dict[table.Path, set[str]]) -> None:
    """A quoted command exists, with its flags: `mt train --load DIR --finetune`."""
    if words[0] in ("COMMAND", "launch", "megatron", "--help", "--version"):
        return
    path = next(tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in table.COMMANDS or n == 1)
    assert path in known or any(p[:1] == path for p in known), words
    given = {word for word in words if word.startswith("--") and word != "--help"}
    assert given <= known.get(path, set()), words


def test_every_answer_names_flags_that_some_command_without_that_name_has(known):
    for name, found in hints.answers()["flags"].items():
        for text in found:
            own = set(hints.FLAG.findall(hints.QUOTED.sub("", text)))
            assert own, f"{name}: an answer without a flag would be given by every command: {text}"
            assert any(own <= there and name not in there for there in known.values()), (name, text)
            for words in quoted(text):
                check_command(words, known)


def test_every_answer_to_a_command_names_one(known):
    for name, (text,) in hints.answers()["commands"].items():
        assert tuple(name.split()) not in table.COMMANDS
        if "`" not in text:
            assert tuple(text.split()) in table.COMMANDS, (name, text)
        for words in quoted(text):
            check_command(words, known)


@pytest.mark.parametrize(
    ("path", "name", "said"),
    [
        ("train", "--learning-rate", "; did you mean --lr?"),
        ("train", "--learning_rate", "; did you mean --lr?"),
        ("train", "--train.learning_rate", "; did you mean --lr?"),
        ("train", "--train.global_batch_size", "; did you mean --global-batch-size?"),
        ("train", "--epochs", "; a run is counted in steps or samples: give --train-samples"),
        ("train", "--batch-size", "; --micro-batch-size is the batch of one process and forward pass"),
        ("generate", "--batch-size", "; did you mean --micro-batch-size?"),
        ("train", "--output-dir", "; did you mean --save?"),
        ("data clean", "--output-dir", "; did you mean --output?"),
        ("data tokenize", "--output-dir", "; did you mean --output-prefix?"),
        ("train", "--model-name-or-path", "; --preset NAME starts from named settings"),
        ("eval wikitext", "--model-name-or-path", "; did you mean --load?"),
        ("train", "--max-length", "; did you mean --seq-length?"),
        ("generate", "--max-length", "; did you mean --tokens-to-generate?"),
        ("train", "--hidden-dim", "; did you mean --hidden-size?"),
        ("train", "--embedding-lr", "; did you mean --decoupled-lr?"),
        ("train", "--num-layer", "; did you mean --num-layers?"),
        ("data clean", "--imput", "; did you mean --input?"),
        ("data clean", "--epochs", ""),
        ("data clean", "--learning-rate", ""),
        ("train", "--mtp-standalone", ""),
        ("train", "--fim-data", ""),
    ],
)
def test_a_name_of_another_program_is_answered_with_the_flag_or_the_way_here(known, path, name, said):
    found = hints.for_flag(name, known[tuple(path.split())])
    assert found.startswith(said) if said else not found


def test_settings_of_files_have_the_same_answers():
    names = ["optimizer.lr", "train.train_samples", "train.train_iters"]
    assert hints.for_setting("learning_rate", names) == "; did you mean optimizer.lr?"
    assert hints.for_setting("train.epochs", names).startswith(
        "; a run is counted in steps or samples: give train.train_samples"
    )
    assert hints.for_setting("optimizer.foo", names) == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("clean", "; did you mean `mt data clean`?"),
        ("pretrain", "; did you mean `mt train`?"),
        ("finetune", "; `mt train --load DIR --finetune` starts from the weights of DIR"),
        ("chat", "; `mt serve` has a page to try a model"),
        ("data clena", "; did you mean clean?"),
        ("dta", "; did you mean data?"),
        ("frobnicate", ""),
        ("data frobnicate", ""),
    ],
)
def test_a_command_of_another_program_is_answered_with_the_command_here(words, said):
    found = hints.for_command(words.split())
    assert found.startswith(said) if said else not found


def test_a_configuration_file_with_an_unknown_name_gets_the_answer():
    loop = pytest.importorskip("mt.train.config", reason="torch is not installed")
    from mt.commands.configure import configure

    with pytest.raises(
        UserError, match=r"a.yaml: unknown setting learning_rate; did you mean optimizer.lr\?"
    ):
        configure(loop.TrainConfig, [("a.yaml", {"learning_rate": 1.0, "save": "s"})])
