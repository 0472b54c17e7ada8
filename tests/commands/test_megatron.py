"""`mt megatron`: command lines of Megatron-LM, compared with what its own parser makes of them.

tests/fixtures/megatron_arguments.json holds what Megatron-LM 0.16.1 says: the names of its flags
(megatron/training/arguments.py, which is not in the package megatron-core), those of 399 public command lines
with the values seen there, and its arguments for some command lines, after parse_args and validate_args.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mt import cli
from mt.commands import megatron, megatron_flags, table
from mt.core.config import UserError, build, settings

pytest.importorskip("torch", reason="torch is not installed")
RECORD = json.loads((Path(__file__).parents[1] / "fixtures/megatron_arguments.json").read_text())
# Arguments of Megatron-LM that are settings here under another name, or with other values
NAMES = {"norm_epsilon": "layernorm_epsilon"}
SAME = [
    "hidden_size", "num_attention_heads", "max_position_embeddings", "init_method_std", "hidden_dropout",
    "attention_dropout", "add_bias_linear", "untie_embeddings_and_output_weights", "normalization",
    "seq_length", "seed", "mask_prob", "short_seq_prob", "micro_batch_size", "train_iters", "train_samples",
    "eval_iters", "lr", "min_lr", "lr_decay_style", "lr_decay_iters", "lr_decay_samples",
    "lr_warmup_fraction", "lr_warmup_iters", "lr_warmup_samples", "lr_warmup_init", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_eps", "sgd_momentum", "clip_grad", "optimizer", "fp16", "bf16",
    "initial_loss_scale", "hysteresis", "log_interval", "save_interval", "tensor_model_parallel_size",
    "pipeline_model_parallel_size", "context_parallel_size", "sequence_parallel", "tokenizer_type",
    "bert_binary_head", "vocab_extra_ids", "recompute_granularity", "reset_position_ids",
    "reset_attention_mask", "eod_mask_loss", "qk_layernorm", "norm_epsilon", "rotary_base",
]  # fmt: skip
LATENTS = "--multi-latent-attention"
BASE = [
    "--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "4", "--seq-length", "16",
    "--max-position-embeddings", "16", "--micro-batch-size", "2", "--lr", "1e-3", "--train-iters", "2",
    "--save", "out", "--save-interval", "10", "--data-path", "p", "--tokenizer-type", "NullTokenizer",
    "--vocab-size", "99",
]  # fmt: skip


def configured(script, line):
    made = megatron.translate(script, line.split() if isinstance(line, str) else line)
    config = megatron.as_configuration(made, table.load(made.path)[1])
    leaves = {}
    for setting in settings(type(config)):
        value = config
        for name in setting.path:
            value = getattr(value, name)
        leaves[setting.path[-1]] = value
    return leaves, made


def test_every_flag_of_megatron_has_an_entry_that_takes_as_many_values():
    for flag in (*RECORD["flags"], *RECORD["seen"]):
        entry = megatron_flags.entries()[flag]
        kinds = [entry.computed, entry.no_effect, entry.cannot, entry.setting or entry.settings]
        assert sum(map(bool, kinds)) == 1, flag
        takes = RECORD["flags"].get(flag, entry.takes)
        assert entry.takes == (None if takes == "many" else takes), flag


def test_every_entry_sets_a_setting_of_a_command():
    known = set()
    for path in {script.command for script in megatron_flags.scripts().values()}:
        paths = [p for p in table.COMMANDS if p[: len(path)] == path and p not in table.RAW] if path else []
        for one in paths:
            if one == (
                "eval",
                "harness",
            ):  # its library takes seconds to import, and no script has its settings
                continue
            known |= {s.path[-1] for s in settings(table.load(one)[1])}
    named = {e.setting for e in megatron_flags.entries().values() if e.setting}
    named |= {name for e in megatron_flags.entries().values() for name in e.settings}
    named |= {name for script in megatron_flags.scripts().values() for name in script.defaults}
    assert named - known == set()


def test_defaults_of_training_are_those_of_megatron():
    theirs = RECORD["defaults"]
    ours = megatron_flags.scripts()["pretrain_gpt.py"].defaults
    shared = {name: value for name, value in ours.items() if name in theirs}
    assert len(shared) > 15
    assert {
        n: theirs[n] for n in shared if n not in ("position_embedding_type", "split", "eval_interval")
    } == {n: v for n, v in shared.items() if n not in ("position_embedding_type", "split", "eval_interval")}
    assert theirs["eval_interval"] is None, "no validation during training, one at its end"


@pytest.mark.parametrize("case", RECORD["lines"], ids=lambda case: case["script"])
def test_a_line_means_what_megatron_makes_of_it(case):
    ours, _ = configured(case["script"], case["line"])
    theirs = case["values"]
    there = {name: theirs[name] for name in SAME if name in theirs}
    here = {name: ours[NAMES.get(name, name)] for name in there}
    assert here == there
    assert ours["num_layers"] == theirs["num_layers"]
    assert (ours["position_embedding_type"] == "learned") == (
        theirs["position_embedding_type"] == "learned_absolute"
    )
    gelu = "gelu_tanh" if theirs["bias_gelu_fusion"] else "gelu"
    activation = "swiglu" if theirs["swiglu"] else "squared_relu" if theirs["squared_relu"] else gelu
    assert ours["activation"] == activation
    groups = theirs["num_query_groups"] if theirs["group_query_attention"] else None
    assert ours["num_query_groups"] == groups
    window = theirs["window_size"]
    assert ours["window_size"] == (window[0] + 1 if window else None)
    assert ours["make_vocab_size_divisible_by"] == 128 * theirs["tensor_model_parallel_size"]
    assert ours["num_experts"] == theirs["num_experts"]
    assert ours["decoder_num_layers"] == theirs["decoder_num_layers"]


def test_the_configuration_that_is_printed_is_one_that_train_takes(capsys, tmp_path):
    assert cli.command(["megatron", "--print-config", "pretrain_gpt.py", *BASE]) == 0
    printed = capsys.readouterr().out
    assert "lr_decay_style: linear  # the default of pretrain_gpt.py" in printed
    cls = table.load(("train",))[1]
    assert build(cls, ("file", yaml.safe_load(printed))) == megatron.as_configuration(
        megatron.translate("pretrain_gpt.py", BASE), cls
    )


def test_no_library_is_imported_to_print_the_configuration():
    code = (
        "import sys\nfrom mt import cli\n"
        "assert cli.command(['megatron', '--print-config', 'pretrain_gpt.py', *sys.argv[1:]]) == 0\n"
        "print(sorted({'torch', 'numpy', 'pyarrow', 'tokenizers'} & set(sys.modules)))"
    )
    latents = [LATENTS, "--position-embedding-type", "rope", "--rotary-scaling-factor", "40"]
    ended = subprocess.run(
        [sys.executable, "-c", code, *BASE, *latents], capture_output=True, text=True, check=True
    )
    assert "lr_decay_style: linear" in ended.stdout
    assert ended.stdout.endswith("\n[]\n")


def test_mock_data_is_there_before_several_processes_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["torchrun", "--nproc-per-node", "2", "pretrain_gpt.py", *BASE[:-6], *BASE[-4:], "--mock-data"]
    assert megatron.megatron(words)[:2] == ["launch", "--nproc-per-node"]
    assert (tmp_path / "out_mock" / "mock_text_document.idx").exists()


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("pretrain_gpt.py", "", "learned ones are added to them; give --position-embedding-type rope"),
        ("pretrain_gpt.py", "--rotary-scaling-factor 0", "--rotary-scaling-factor 0: must be above 0"),
        ("pretrain_gpt.py", "--rotary-interleaved", "--rotary-interleaved: Megatron-LM refuses it"),
        ("pretrain_gpt.py", "--rope-type llama", "--rope-type 'llama': must be one of rope, yarn"),
        ("pretrain_gpt.py", "--kv-lora-rank x", "--kv-lora-rank 'x': must be a whole number"),
        ("pretrain_mamba.py", "", "Megatron-LM's hybrids have other attention"),
    ],
)
def test_latents_that_megatron_has_not_are_refused(script, flags, message):
    with pytest.raises(UserError) as refused:
        megatron.translate(script, [*BASE, LATENTS, *flags.split()])
    assert message in str(refused.value)


def test_torchrun_and_python_may_stand_before_the_script():
    line = ["python3", "-u", "/x/pretrain_gpt.py", *BASE]
    assert megatron.megatron(line) == megatron.megatron(["pretrain_gpt.py", *BASE])
    launched = ["torchrun", "--nproc_per_node", "8", "pretrain_gpt.py", *BASE]
    assert megatron.megatron(launched) == [
        "launch", "--nproc_per_node", "8", "megatron", "pretrain_gpt.py", *BASE,
    ]  # fmt: skip
    with pytest.raises(UserError, match="srun stands before"):
        megatron.megatron(["srun", "pretrain_gpt.py", *BASE])


def test_all_that_cannot_be_is_said_at_once():
    wrong = ["--attention-output-gate", "--optimizer", "lion", "--num-layer", "3", "--micro-batch-size=x=y"]
    with pytest.raises(UserError) as error:
        megatron.translate("pretrain_gpt.py", [*BASE, *wrong, "--position-embedding-type", "mrope"])
    text = str(error.value)
    assert text.count("\n") == 3
    for words in (
        "no such gate",
        "lion: must be one of adam, sgd, muon",
        "--num-layer; did you mean --num-layers",
        "multimodal positions",
    ):
        assert words in text


@pytest.mark.parametrize("value", ["9" * 5000, "abc", "nan", "1e999", ""])
@pytest.mark.parametrize(
    "flags",
    [
        ["--window-size"],
        ["--num-experts"],
        ["--use-rope-scaling", "--rope-scaling-factor"],
        ["--rotary-seq-len-interpolation-factor"],
    ],
)
def test_what_is_no_number_or_an_endless_one_is_told(flags, value):
    with pytest.raises(UserError, match=f"{flags[-1]} '.*must be"):
        megatron.translate("pretrain_gpt.py", [*BASE, *flags, value])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--checkpoint-activations", {"recompute_granularity": "full", "recompute_method": "uniform"}),
        ("--window-size 7,0", {"window_size": 8}),
        ("--window-size (-1,0)", {"window_size": None}),
        ("--attention-backend fused", {"attention_backend": "auto"}),
        ("--attention-backend unfused", {"attention_backend": "sdpa"}),
        ("--sequence-parallel", {"sequence_parallel": False}),
        ("--sequence-parallel --tensor-model-parallel-size 2", {"sequence_parallel": True}),
        ("--vocab-size 50", {"tokenizer_vocab_size": 51}),
        ("--fim-rate 0.7", {"fim_rate": 0.0}),
        ("--num-query-groups 2", {"num_query_groups": None}),
        ("--group-query-attention", {"num_query_groups": 1}),
        ("--disable-bias-linear", {"activation": "gelu", "add_bias_linear": False}),
        (
            "--num-experts 4 --disable-bias-linear --tensor-model-parallel-size 2"
            " --expert-tensor-parallel-size 1 --expert-model-parallel-size 4",
            {"expert_model_parallel_size": 2},
        ),
        (
            "--num-experts 4 --disable-bias-linear --moe-router-score-function sigmoid"
            " --moe-router-pre-softmax",
            {"moe_router_score_function": "sigmoid", "moe_router_pre_softmax": False},
        ),
        ("--save-retain-interval 20", {"keep_last": 1, "save_retain_interval": 20}),
        ("--load nowhere --finetune", {"load": None, "finetune": False}),
        ("--embedding-init-method-std 0.5", {"embedding_init_method_std": 0.5, "init_method_std": 0.02}),
        (
            "--position-embedding-type alibi --embed-layernorm",
            {"position_embedding_type": "alibi", "embed_layernorm": True},
        ),
        ("--mtp-num-layers 0", {"mtp_num_layers": 0}),
        ("--mtp-loss-scaling-factor 0.3", {"mtp_num_layers": 0, "mtp_loss_scaling_factor": 0.1}),
        ("--mtp-num-layers 2", {"mtp_num_layers": 2, "mtp_loss_scaling_factor": 0.1}),
        (
            "--mtp-num-layers 1 --mtp-loss-scaling-factor 0.3 --num-layers 3 --pipeline-model-parallel-size 2"
            " --pipeline-model-parallel-layout Ett|tmL",
            {
                "mtp_num_layers": 1,
                "mtp_loss_scaling_factor": 0.3,
                "pipeline_model_parallel_layout": "t*2|t",
            },
        ),
        ("--window-size 7,0 --window-attn-skip-freq 2", {"window_attn_skip_freq": "2"}),
        ("--window-size 7,0 --window-attn-skip-freq [1,0]", {"window_attn_skip_freq": "[1,0]"}),
        ("--window-attn-skip-freq 2", {"window_attn_skip_freq": None, "window_size": None}),
        ("--qk-layernorm --apply-wd-to-qk-layernorm", {"apply_wd_to_qk_layernorm": True}),
        ("--apply-wd-to-qk-layernorm", {"apply_wd_to_qk_layernorm": False}),
        ("--qk-layernorm --no-weight-decay-cond-type qwen3_next", {"apply_wd_to_qk_layernorm": True}),
        ("--optimizer muon", {"optimizer": "muon", "muon_tp_mode": "blockwise", "muon_momentum": 0.95}),
        (
            "--optimizer dist_muon --muon-momentum 0.9 --muon-use-nesterov --muon-no-split-qkv"
            " --muon-tp-mode distributed --muon-num-ns-steps 10 --muon-scale-mode unit_rms_norm",
            {
                "optimizer": "muon",
                "muon_momentum": 0.9,
                "muon_use_nesterov": True,
                "muon_split_qkv": False,
                "muon_tp_mode": "duplicated",
                "muon_num_ns_steps": 10,
                "muon_scale_mode": "unit_rms_norm",
            },
        ),
        ("--muon-momentum 0.9", {"optimizer": "adam", "muon_momentum": 0.95}),
        (
            "--bf16 --fp8-format hybrid --first-last-layers-bf16 --num-layers-at-end-in-bf16 2",
            {"first_last_layers_bf16": True, "num_layers_at_end_in_bf16": 2},
        ),
        (
            "--bf16 --first-last-layers-bf16 --num-layers-at-end-in-bf16 0",
            {"first_last_layers_bf16": False, "num_layers_at_end_in_bf16": 1},
        ),
        ("--position-embedding-type rope --rotary-interleaved", {"rotary_interleaved": True}),
        ("--rotary-interleaved", {"rotary_interleaved": False}),
        (
            "--eval-global-batch-size 8 --full-validation",
            {"eval_global_batch_size": 8, "full_validation": True},
        ),
        ("--attention-head-type multiquery", {"num_query_groups": 1}),
        ("--attention-head-type multihead", {"num_query_groups": None}),
        ("--apply-layernorm-1p", {"apply_layernorm_1p": True}),
        ("--relative-attention-num-buckets 16", {"relative_attention_num_buckets": 32}),
        ("--q-lora-rank 8 --kv-lora-rank 4", {"multi_latent_attention": False, "kv_lora_rank": 512}),
        (
            f"{LATENTS} --position-embedding-type none --kv-channels 7 --rotary-base 500",
            {
                "multi_latent_attention": True,
                "q_lora_rank": None,
                "kv_lora_rank": 32,
                "qk_head_dim": 128,
                "qk_pos_emb_head_dim": 64,
                "v_head_dim": 128,
                "position_embedding_type": "rope",
                "rope_scaling": None,
                "kv_channels": None,
                "rotary_base": 500,
                "qk_layernorm": False,
            },
        ),
        (
            f"{LATENTS} --position-embedding-type rope --q-lora-rank 16 --kv-lora-rank 8 --v-head-dim 6"
            " --rotary-scaling-factor 40 --mscale 0.7 --mscale-all-dim 0.9 --qk-layernorm",
            {
                "q_lora_rank": 16,
                "kv_lora_rank": 8,
                "v_head_dim": 6,
                "qk_layernorm": True,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 40.0,
                    "original_max_position_embeddings": 4096,
                    "mscale": 0.7,
                    "mscale_all_dim": 0.9,
                },
            },
        ),
        (
            f"{LATENTS} --position-embedding-type rope --rope-type rope --rotary-scaling-factor 40"
            " --mscale-all-dim 1.0",
            {"rope_scaling": None, "softmax_scale": 192**-0.5 * (0.1 * math.log(40) + 1) ** 2},
        ),
    ],
)
def test_values_mean_the_same(flags, expected):
    ours, _ = configured("pretrain_gpt.py", [*BASE, *flags.split()])
    assert {name: ours[name] for name in expected} == expected


@pytest.mark.parametrize("schedule", [["0:2", "1K:4"], ["0:2 1K:4"]])
def test_a_stepwise_batch_size_may_be_one_word_or_several(schedule):
    at = BASE.index("--train-iters")
    line = [*BASE[:at], "--train-samples", "99", *BASE[at + 2 :], "--step-batch-size-schedule", *schedule]
    assert configured("pretrain_gpt.py", line)[0]["step_batch_size_schedule"] == tuple(schedule)


@pytest.mark.parametrize(
    ("flags", "layout"),
    [
        (
            "--num-layers 7 --pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Et*3|t*4L",
            "t*3|t*4",
        ),
        (
            "--num-layers 5 --pipeline-model-parallel-size 3 --pipeline-model-parallel-layout Ett|ttt|L",
            "t*2|t*2|t",
        ),
        ("--num-layers 6 --pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 2", "t*2|t*4"),
        (
            "--num-layers 6 --pipeline-model-parallel-size 2 --account-for-embedding-in-pipeline-split"
            " --account-for-loss-in-pipeline-split --num-virtual-stages-per-pipeline-rank 2",
            "t|t*2|t*2|t",
        ),
        ("--num-layers 6 --account-for-loss-in-pipeline-split", None),
    ],
)
def test_uneven_pipelines_become_a_layout(flags, layout):
    assert (
        configured("pretrain_gpt.py", [*BASE, *flags.split()])[0]["pipeline_model_parallel_layout"] == layout
    )


def test_a_layout_that_does_not_fit_is_refused():
    line = [*BASE, "--pipeline-model-parallel-size", "2", "--decoder-last-pipeline-num-layers", "5"]
    with pytest.raises(
        UserError, match="last-pipeline-num-layers: 2 layers do not divide into 2 x 1 stages so"
    ):
        megatron.translate("pretrain_gpt.py", line)
    with pytest.raises(UserError, match=r"layout 'Etx\|tL' has 'x'; write t for a block"):
        megatron.translate("pretrain_gpt.py", [*line[:-2], "--pipeline-model-parallel-layout", "Etx|tL"])


def test_relative_positions_of_t5_have_the_given_buckets():
    flags = "--position-embedding-type relative --relative-attention-num-buckets 16"
    line = [*BASE, "--decoder-seq-length", "16", "--apply-layernorm-1p", *flags.split()]
    ours, made = configured("pretrain_t5.py", [*line, "--relative-attention-max-distance", "64"])
    assert (ours["relative_attention_num_buckets"], ours["relative_attention_max_distance"]) == (16, 64)
    assert not ours["apply_layernorm_1p"]
    assert any("trains to the same numbers" in note for note in made.notes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "tools/preprocess_data.py --input a.jsonl --output-prefix p --tokenizer-type GPT2BPETokenizer"
            " --vocab-file v --merge-file m --append-eod --workers 4 --partitions 2",
            ["data", "tokenize", "--append-eod", "--workers=4"],
        ),
        ("tools/merge_datasets.py --input d --output-prefix p", ["data", "merge", "--output-prefix=p"]),
        (
            "tools/checkpoint/convert.py --model-type GPT --loader mcore --saver core --load-dir a"
            " --save-dir b --target-tensor-parallel-size 4",
            ["checkpoint", "convert", "--source=a", "--output=b", "--target-tensor-parallel-size=4"],
        ),
        (
            "tools/run_text_generation_server.py --load c --port 5001 --num-layers 2",
            ["serve", "--load=c", "--port=5001", "--max-tokens-to-oom=12000"],
        ),
        (
            "examples/inference/gpt/gpt_static_inference.py --load c --prompts Time"
            " --num-tokens-to-generate 5 --top_k 1 --return-log-probs --output-path o.json",
            ["generate", "--load=c", "--tokens-to-generate=5", "--top-k=1", "--output=o"],
        ),
        (
            "tasks/main.py --task LAMBADA --load c --valid-data f --strict-lambada --micro-batch-size 8",
            ["eval", "lambada", "--strict-lambada", "--load=c", "--micro-batch-size=8"],
        ),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_tools_run_the_command_that_does_the_same(line, words):
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    found = megatron.megatron(line.split())
    assert found[:2] == words[:2] or found[:1] == words[:1]
    assert set(words) <= set(found)


def test_scripts_of_images_and_of_others_are_refused():
    with pytest.raises(UserError, match="trains on texts"):
        megatron.translate("examples/multimodal/train.py", [])
    with pytest.raises(UserError, match="no script of Megatron-LM of that name"):
        megatron.translate("my_script.py", [])


def test_help_fits_the_terminal_and_says_what_each_flag_is(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["megatron", "torchrun", "pretrain_gpt.py", "--lr", "1", "--help", "rotary"])
    said = capsys.readouterr().out
    assert "--rotary-base X " in said
    assert "sets rotary_base" in said
    assert "--adam-beta1" not in said
    with pytest.raises(UserError, match="has xyzzy in its name"):
        megatron._script_help("pretrain_gpt.py", ["xyzzy"], 80)
    for columns in (60, 80):
        page = megatron._script_help("pretrain_gpt.py", [], columns)
        assert [flag for flag in RECORD["flags"] if f"  {flag}" not in page] == []
        for line in f"{page}\n{megatron._help(columns)}".splitlines():
            # text is filled; a flag may be longer, on a line of its own
            assert len(line) <= columns or len(line.split()) <= 2, line


def test_commands_that_the_table_names_are_there():
    text = Path(megatron_flags.__file__).with_suffix(".yaml").read_text()
    for words in re.findall(r"`mt ([a-z][a-z -]*?)(?= -|`)", text):
        path = tuple(words.split())
        assert any(path[:n] in table.COMMANDS or path[:1] == ("eval",) for n in (1, 2)), words


def test_mistakes_are_told_before_the_libraries_are_imported(monkeypatch):
    monkeypatch.setattr(table, "load", lambda path: pytest.fail("imports the libraries"))
    with pytest.raises(UserError, match="unknown flag --num-layerz; did you mean --num-layers"):
        megatron.megatron(["pretrain_gpt.py", *BASE, "--num-layerz", "3"])
    with pytest.raises(UserError, match=r"pretrain_gpt.py: optimizer.lr = 'x'"):
        megatron.megatron(["pretrain_gpt.py", *BASE, "--lr", "x"])
    assert megatron.megatron(["pretrain_gpt.py", *BASE])[0] == "train"


def test_the_printed_configuration_says_how_many_processes_it_is_for(capsys):
    assert (
        megatron.megatron(["--print-config", "torchrun", "--nproc-per-node=8", "pretrain_gpt.py", *BASE])
        is None
    )
    assert capsys.readouterr().out.startswith("# mt launch --nproc-per-node=8 train --config THIS_FILE\n")
