"""The command line: help, mistakes, exit codes, JSON, flags of Megatron-LM."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import pytest

from mt import cli
from mt.core.config import UserError, option


def mt(*arguments, **how):
    return subprocess.run(
        [sys.executable, "-m", "mt", *map(str, arguments)], capture_output=True, text=True, **how
    )


def test_help_lists_every_command_and_imports_neither_torch_nor_numpy():
    code = (
        "import sys, mt.cli\ntry: mt.cli.main(['--help'])\nexcept SystemExit: pass\nprint(sorted({'torch',"
        " 'numpy', 'rich', 'pyarrow'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert output.endswith("[]\n")
    assert all(f"mt {' '.join(path)} " in output for path in cli.VERBS)


def test_help_marks_required_settings_and_shows_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["data", "clean", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "directory for the result (required)" in shown
    assert "(default 64000000)" in shown  # --shard-bytes
    assert "MISSING" not in shown


@pytest.mark.parametrize("path", [path for path in cli.VERBS if path != ("launch",)], ids=" ".join)
def test_every_command_of_the_table_exists_and_every_setting_has_help(path, capsys):
    function, cls = cli.verb(path)
    assert function.__doc__
    from mt.core.config import settings

    leaves = list(settings(cls))
    assert len({s.path[-1] for s in leaves}) == len(leaves), (
        "leaf names must be unique: flags carry no prefix"
    )
    assert all(s.help for s in leaves), [s.name for s in leaves if not s.help]
    with pytest.raises(SystemExit) as end:
        cli.main([*path, "--help"])
    assert end.value.code == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dta"], "mt dta: no such command; did you mean data?"),
        (["data", "clena"], "did you mean clean?"),
        (["data", "clean", "--imput", "x"], "unknown flag --imput; did you mean --input?"),
        (["data", "clean", "--input", "x"], "output must be given (--output)"),
        (
            ["data", "clean", "--input", "/nowhere.jsonl", "--output", "/tmp/never"],
            "/nowhere.jsonl: no such file",
        ),
        (["data", "clean", "--config", "/nowhere.yaml"], "/nowhere.yaml: no such file"),
        (
            ["data", "clean", "--preset", "fineweeb", "--input", "x", "--output", "y"],
            "preset 'fineweeb' is not known",
        ),
        (["run"], "pipeline must be given"),
        (["run", "a.yaml", "b.yaml"], "unexpected argument b.yaml"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(arguments, message):
    ended = mt(*arguments)
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().split("\n")) == 1
    assert ended.stdout == ""


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("x", "a setting")


def exit_code(monkeypatch, outcome):
    def command(config: Config) -> dict:
        """A command."""
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(cli, "verb", lambda path: (command, Config))
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--json"])
    return end.value.code


def test_exit_codes_tell_success_rejects_mistakes_and_interrupts(monkeypatch, capsys):
    assert exit_code(monkeypatch, {"counts": {"documents": 3}}) == 0
    assert json.loads(capsys.readouterr().out) == {"counts": {"documents": 3}}
    assert exit_code(monkeypatch, {"counts": {"rejected": 1}}) == 3
    assert exit_code(monkeypatch, UserError("bad")) == 2
    assert exit_code(monkeypatch, KeyboardInterrupt()) == 130
    assert "run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EFBIG, errno.EISDIR])
def test_errors_of_the_operating_system_give_one_line(monkeypatch, capsys, number):
    assert exit_code(monkeypatch, OSError(number, os.strerror(number), "/some/file")) == 2
    assert capsys.readouterr().err.startswith("mt: /some/file: ")


def test_an_error_in_mt_shows_its_traceback_and_exits_1(monkeypatch, capsys):
    assert exit_code(monkeypatch, OSError(errno.EBADF, "Bad file descriptor")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    import builtins

    real = builtins.__import__

    def without_torch(name, *rest):
        if name.split(".")[0] == "faiss":
            raise ModuleNotFoundError("No module named 'faiss'", name="faiss")
        return real(name, *rest)

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: without_torch("faiss"))
    with pytest.raises(
        UserError, match=r"needs the package faiss; install it with: pip install 'mt\[retro\]'"
    ):
        cli.verb(("retro", "build-db"))


def test_flags_of_megatron_without_a_setting_here_are_accepted_with_a_reason(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"body": "ab"}\n')
    flags = [
        "--input",
        tmp_path / "in.jsonl",
        "--output-prefix",
        tmp_path / "p",
        "--tokenizer-type",
        "ByteLevelTokenizer",
        "--workers",
        "1",
    ]
    ended = mt(
        "data",
        "tokenize",
        "--partitions",
        "4",
        "--json-key",
        "body",
        "--keep-sequential-samples",
        *flags,
        "--pad-vocab-size",
        "--padded-vocab-size=512",
        "--workers-to-check",
        "16",
        "32",
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "p_body_document.bin").exists()
    lines = ended.stderr.splitlines()
    assert (
        lines[0] == "mt: --partitions is accepted and not needed: one pass with --workers processes needs no"
        " partitions"
    )
    assert sum("the model pads the vocabulary" in line for line in lines) == 1, "a reason is printed once"


@pytest.fixture
def trained(monkeypatch):
    """The configurations that `mt train` is called with; nothing is trained."""
    loop = pytest.importorskip("mt.train.loop", reason="torch is not installed")
    configs = []

    def train(config: loop.TrainConfig) -> dict:
        configs.append(config)
        return {}

    monkeypatch.setattr(loop, "train", train)
    return configs


def test_flags_of_megatron_with_another_name_here_set_the_same_setting(trained, capsys):
    given = (
        "--family t5 --encoder-num-layers 3 --encoder-seq-length 64 --decoder-seq-length=32 --swiglu"
        " --disable-bias-linear --norm-epsilon 1e-6 --use-flash-attn --bert-no-binary-head"
    )
    cli.call(("train",), [*given.split(), "--data-path", "p", "--train-iters", "1", "--save", "s"])
    (config,) = trained
    model = config.model
    assert (model.num_layers, config.data.seq_length, config.data.decoder_seq_length) == (3, 64, 32)
    assert (model.activation, model.add_bias_linear, model.layernorm_epsilon, model.bert_binary_head) == (
        "swiglu",
        False,
        1e-6,
        False,
    )
    assert (
        "--use-flash-attn is accepted and not needed: the fastest attention on this machine"
        in capsys.readouterr().err
    )


def test_a_mapping_is_given_as_key_value_pairs(trained):
    given = ["--data-path", "p", "--train-iters", "1", "--save", "s", "--position-embedding-type", "rope"]
    cli.call(("train",), [*given, "--rope-scaling", "rope_type=linear,factor=2"])
    cli.call(("train",), [*given, "--use-rope-scaling"])
    assert trained[0].model.rope_scaling == {"rope_type": "linear", "factor": 2}
    # Megatron-LM's --use-rope-scaling: RotaryEmbedding._apply_scaling
    assert trained[1].model.rope_scaling == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    with pytest.raises(
        UserError, match="argument --rope-scaling: linear must be key=value pairs, separated by commas"
    ):
        cli.call(("train",), [*given, "--rope-scaling", "linear"])
