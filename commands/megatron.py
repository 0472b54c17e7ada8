"""`mt megatron SCRIPT ARGS...`: does what a script of Megatron-LM does with these arguments.

    mt megatron pretrain_gpt.py --num-layers 24 --hidden-size 1024 ...
    mt megatron torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 24 ...
    mt megatron --print-config pretrain_gpt.py --num-layers 24 ... > run.yaml
    mt megatron pretrain_gpt.py --help rotary

The arguments become settings of the command that does the same (megatron_flags.yaml), beginning with the
script's own defaults, which are not those of mt: dropout is 0.1, the learning rate falls linearly, the GELU
is approximated. --print-config prints these settings as YAML, for `mt train --config`. What has no effect
here is said on standard error. All that cannot be is said at once, before anything is read or written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..core import paths, terminal
from ..core.config import UserError, build, nearest, settings, shown
from . import hints, megatron_stages, table
from .flags import NEGATIVE
from .megatron_flags import Entry, Script, entries, scripts
from .outline import Missing

PRINT = "--print-config"
WHOLE = re.compile(r"-?[0-9]{1,18}")
MOST_MAMBA_LAYERS = 100_000  # a pattern has one letter for each
UNEVEN = (
    "--pipeline-model-parallel-layout", "--decoder-first-pipeline-num-layers",
    "--decoder-last-pipeline-num-layers", "--account-for-embedding-in-pipeline-split",
    "--account-for-loss-in-pipeline-split",
)  # fmt: skip
TASKS = {
    "WIKITEXT103": "wikitext",
    "LAMBADA": "lambada",
    "RACE": "race",
    "MNLI": "mnli",
    "QQP": "qqp",
    "RETRIEVER-EVAL": "retrieval",
    "ICT-ZEROSHOT-NQ": "retrieval",
}


@dataclasses.dataclass
class Translation:
    """A command of mt with its settings, by their names without groups."""

    script: str  # its file name
    path: table.Path
    settings: dict[str, Any]
    defaults: set[str]  # the settings that are the script's defaults
    given: dict[str, list[str]]  # the script's own flags with their values; the last of two counts
    mistakes: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def value(self, flag: str) -> str | None:
        """The value of a flag, or None where it is not given or takes none."""
        values = self.given.get(flag)
        return values[0] if values else None

    def number(self, flag: str, default: int) -> int:
        """A flag's whole number; a mistake and the default where its value is none."""
        text = self.value(flag)
        if text is None:
            return default
        if not WHOLE.fullmatch(text):
            self.mistakes.append(f"{flag} {shown(text)}: must be a whole number of at most 18 digits")
            return default
        return int(text)

    def real(self, flag: str, default: float) -> float:
        """A flag's number; a mistake and the default where its value is none."""
        text = self.value(flag)
        if text is None:
            return default
        try:
            if math.isfinite(value := float(text)):
                return value
        except ValueError:
            pass
        self.mistakes.append(f"{flag} {shown(text)}: must be a finite number")
        return default

    def has(self, *flags: str) -> bool:
        return any(flag in self.given for flag in flags)

    def set(self, **settings_: Any) -> None:
        """Sets what follows from given flags."""
        self.settings |= settings_
        self.defaults -= settings_.keys()

    @property
    def trains(self) -> bool:
        return self.path == ("train",)


def megatron(arguments: list[str]) -> list[str] | None:
    """The command line of mt that does the same; None after --help or --print-config.

    Raises UserError with all mistakes.
    """
    only_print = PRINT in arguments
    launcher, name, rest = _script([word for word in arguments if word != PRINT])
    if name is None:
        print(_help(terminal.screen(sys.stdout).columns))
        return None
    if (asks := next((i for i, word in enumerate(rest) if word in ("--help", "-h")), None)) is not None:
        print(_script_help(name, rest[asks + 1 :], terminal.screen(sys.stdout).columns))
        return None
    if launcher is not None and not only_print:
        if "--mock-data" in rest:  # while there is one process: of several, one writes and the others read
            _write_mock_data(translate(name, rest))
        return ["launch", *launcher, "megatron", name, *rest]
    made = translate(name, rest)
    config = configuration(made)
    if made.has("--mock-data") and os.environ.get("RANK", "0") == "0":
        _write_mock_data(made)
    for note in dict.fromkeys(made.notes):
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes
            print(f"mt: {note}", file=sys.stderr)
    if only_print:
        print(_as_yaml(made, config, launcher), end="")
        return None
    return [*made.path, *(word for name, value in made.settings.items() for word in _words(name, value))]


def translate(name: str, arguments: Sequence[str]) -> Translation:
    """What a script of Megatron-LM does with these arguments; raises UserError with all mistakes."""
    script = _find(name)
    if script.cannot is not None:
        raise UserError(f"{name}: {script.cannot}")
    mistakes: list[str] = []
    given = _read(arguments, mistakes)
    path = script.command
    if path == ("eval",):
        path = _task(given, mistakes)
    made = Translation(Path(name).name, path, dict(script.defaults), set(script.defaults), given, mistakes)
    known = {s.path[-1] for s in settings(_outline(path))} if path in table.COMMANDS else set()
    made.settings = {k: v for k, v in made.settings.items() if k in known}
    made.defaults &= made.settings.keys()
    for flag, values in given.items():
        _apply(made, flag, values, entries()[flag], known)
    if not made.mistakes:
        for compute in COMPUTED if made.trains else OTHERS:
            compute(made)
    if made.mistakes:
        raise UserError("\n".join(f"{made.script}: {mistake}" for mistake in made.mistakes))
    made.settings = {k: v for k, v in made.settings.items() if k in known}
    return made


def _script(words: Sequence[str]) -> tuple[list[str] | None, str | None, list[str]]:
    """(torchrun's arguments, or None without it; the script; its arguments)."""
    if not words or words[0] in ("--help", "-h"):
        return None, None, []
    index = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    if index is None:
        raise UserError(
            f"mt megatron: {words[0]} is no script of Megatron-LM; it takes SCRIPT.py ARGS..., such as"
            " pretrain_gpt.py --num-layers 12"
        )
    before, name, rest = list(words[:index]), words[index], list(words[index + 1 :])
    while before and re.fullmatch(r"(\S*/)?python[\d.]*|-u", before[0]):
        before.pop(0)
    launched = bool(before) and (
        before[0].rsplit("/", 1)[-1] == "torchrun"
        or before[:2] in (["-m", "torch.distributed.run"], ["-m", "torch.distributed.launch"])
    )
    if before and not launched:
        raise UserError(f"mt megatron: {before[0]} stands before {name}; give torchrun, python or nothing")
    if launched:
        before = before[1 if before[0] != "-m" else 2 :]
        return [word for word in before if word not in ("--use_env", "--use-env")], name, rest
    return None, name, rest


def _find(name: str) -> Script:
    parts = Path(name).as_posix()
    ends = [key for key in scripts() if parts == key or parts.endswith("/" + key)]
    if not ends:
        key = nearest(Path(name).name, [key for key, script in scripts().items() if not script.cannot])
        raise UserError(
            f"{name}: no script of Megatron-LM of that name is known{key}; `mt megatron` lists them"
        )
    return scripts()[max(ends, key=len)]


def _read(arguments: Sequence[str], mistakes: list[str]) -> dict[str, list[str]]:
    """The flags with their values. The last of two equal flags counts."""
    given: dict[str, list[str]] = {}
    queue = list(arguments)
    while queue:
        name, equals, value = queue.pop(0).partition("=")
        if not _is_flag(name):
            mistakes.append(f"unexpected argument {shown(name + equals + value)}: all settings are flags")
            continue
        entry = entries().get(name)
        following: list[str] = []
        limit = entry.takes if entry is not None else None
        if equals:
            following = [value]
        else:
            while queue and not _is_flag(queue[0]) and (limit is None or len(following) < limit):
                following.append(queue.pop(0))
        if entry is None:
            mistakes.append(f"unknown flag {name}{nearest(name, entries())}")
        elif limit == 1 and not following:
            mistakes.append(f"{name} needs a value")
        elif limit == 0 and equals:
            mistakes.append(f"{name}={value}: this flag takes no value; remove ={value}")
        else:
            given.pop(name, None)
            given[name] = following
    return given


def _is_flag(word: str) -> bool:
    return word.startswith("--") or (
        word.startswith("-") and len(word) > 1 and not NEGATIVE.fullmatch(word) and " " not in word
    )


def _apply(made: Translation, flag: str, values: list[str], entry: Entry, known: set[str]) -> None:
    """Adds the settings, the note or the mistake of one flag."""
    if entry.cannot is not None:
        if not values or any(value not in entry.unless for value in values):
            made.mistakes.append(f"{' '.join([flag, *values])}: {entry.cannot}")
        return
    if entry.no_effect is not None:
        made.notes.append(f"{flag} has no effect here: {entry.no_effect}")
        return
    if entry.computed is not None:
        return
    wanted = {k: v for k, v in entry.settings.items() if k in known}
    if entry.setting in known:
        assert entry.setting is not None
        wanted[entry.setting] = _converted(made, flag, values, entry)
    if wanted:
        made.set(**wanted)
    elif made.trains:
        made.mistakes.append(f"{flag}: is no flag of {made.script}; leave it out")
    else:
        made.notes.append(
            f"{flag} has no effect in `mt {' '.join(made.path)}`: the checkpoint or the data says it"
        )


def _converted(made: Translation, flag: str, values: list[str], entry: Entry) -> Any:
    if entry.takes == 0:
        return True
    if entry.takes is None:
        return list(values)
    if entry.values or entry.refused:
        if (why := entry.refused.get(values[0])) is not None:
            made.mistakes.append(f"{flag} {values[0]}: {why}")
        elif values[0] not in entry.values:
            choices = ", ".join(entry.values)
            made.mistakes.append(
                f"{flag} {values[0]}: must be one of {choices}{nearest(values[0], entry.values)}"
            )
        return entry.values.get(values[0], values[0])
    return values[0]


def _task(given: dict[str, list[str]], mistakes: list[str]) -> table.Path:
    name = given.get("--task", [""])[0]
    if name.upper() not in TASKS:
        mistakes.append(f"--task {name}: must be one of {', '.join(TASKS)}; `mt eval --help` lists others")
        return ("eval", "wikitext")
    return ("eval", TASKS[name.upper()])


def _activation(made: Translation) -> None:
    """Without the fusion of bias and GELU, Megatron-LM computes the exact GELU."""
    if made.settings.get("activation") == "gelu_tanh" and made.has(
        "--no-bias-gelu-fusion", "--disable-bias-linear"
    ):
        made.set(activation="gelu")


def _optimizer(made: Translation) -> None:
    """Megatron-LM ignores the settings of Muon without it, and takes its matrices in blocks with it."""
    if made.settings.get("optimizer") == "muon":
        made.settings.setdefault("muon_tp_mode", "blockwise")
        return
    for name in [name for name in made.settings if name.startswith("muon_")]:
        made.settings.pop(name)
        made.notes.append(f"--{name.replace('_', '-')} has no effect without --optimizer muon")


def _precision(made: Translation) -> None:
    """The layers that float8 leaves out count only with it."""
    first_last = made.has("--first-last-layers-bf16")
    if first_last and made.has("--fp8-format"):
        made.set(first_last_layers_bf16=True)
    for name in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"):
        flag = "--" + name.replace("_", "-")
        if made.has(flag) and "first_last_layers_bf16" in made.settings:
            made.set(**{name: made.value(flag)})
        elif made.has(flag):
            made.notes.append(f"{flag} has no effect without --first-last-layers-bf16 and --fp8-format")
    if first_last and "first_last_layers_bf16" not in made.settings:
        made.notes.append("--first-last-layers-bf16 has no effect without --fp8-format")


def _attention(made: Translation) -> None:
    if made.has("--group-query-attention"):
        made.set(num_query_groups=made.number("--num-query-groups", 1))
    elif made.has("--num-query-groups"):
        made.notes.append("--num-query-groups has no effect in Megatron-LM without --group-query-attention")
    if (kind := made.value("--attention-head-type")) is not None:
        if kind not in ("multihead", "multiquery"):
            made.mistakes.append(f"--attention-head-type {shown(kind)}: must be multihead or multiquery")
        elif kind == "multiquery":
            made.set(num_query_groups=1)
    if (window := made.value("--window-size")) is not None:
        sizes = re.fullmatch(r"\(?\s*(-?[0-9]{1,18})\s*,\s*(-?[0-9]{1,18})\s*\)?", window)
        if sizes is None or sizes[2] not in ("0", "-1"):
            made.mistakes.append(f"--window-size {shown(window)}: must be LEFT,0, tokens before the own one")
        elif int(sizes[1]) >= 0:
            made.set(window_size=int(sizes[1]) + 1)
    if (layers := made.value("--window-attn-skip-freq")) is not None:
        if "window_size" in made.settings:
            made.set(window_attn_skip_freq=layers)
        else:
            made.notes.append("--window-attn-skip-freq has no effect without --window-size")
    condition = made.value("--no-weight-decay-cond-type")
    if condition not in (None, "apply_wd_to_qk_layernorm", "qwen3_next"):
        made.mistakes.append(
            f"--no-weight-decay-cond-type {shown(condition)}: must be apply_wd_to_qk_layernorm"
        )
    elif condition is not None or made.has("--apply-wd-to-qk-layernorm"):
        if made.has("--qk-layernorm"):
            made.set(apply_wd_to_qk_layernorm=True)
        else:
            made.notes.append("--apply-wd-to-qk-layernorm has no effect without --qk-layernorm")
    if made.has("--apply-layernorm-1p"):
        if made.settings.get("family") == "gpt":
            made.set(apply_layernorm_1p=True)
        else:
            made.notes.append(
                "--apply-layernorm-1p has no effect here: the norm's weight is stored whole instead of less"
                " 1; it begins with 1, has no weight decay, and trains to the same numbers"
            )


# Megatron-LM's sizes where no flag says them
LATENT_SIZES = {"kv_lora_rank": 32, "qk_head_dim": 128, "qk_pos_emb_head_dim": 64, "v_head_dim": 128}
# flags of multi-latent attention that set more than one setting each
LATENT_SCALING = ("--rope-type", "--rotary-scaling-factor", "--mscale", "--mscale-all-dim")


def _latents(made: Translation) -> None:
    """Multi-latent attention, and its positions; without it these flags mean nothing to Megatron-LM."""
    sizes = {f"--{name.replace('_', '-')}": name for name in ("q_lora_rank", *LATENT_SIZES)}
    if not made.has("--multi-latent-attention"):
        if made.value("--rope-type") == "yarn":
            made.mistakes.append("--rope-type yarn: is for --multi-latent-attention; give that too")
        for flag in (*sizes, *LATENT_SCALING):
            if made.has(flag):
                made.notes.append(f"{flag} has no effect in Megatron-LM without --multi-latent-attention")
        return
    if made.script in ("pretrain_mamba.py", "pretrain_hybrid.py") or made.has("--hybrid-override-pattern"):
        made.mistakes.append(
            "--multi-latent-attention: Megatron-LM's hybrids have other attention; leave it out"
        )
    positions = made.settings.get("position_embedding_type")
    if positions not in ("rope", "none"):
        made.mistakes.append(
            f"--multi-latent-attention: rotates its own positions, and {positions} ones are added to them;"
            " give --position-embedding-type rope too"
        )
    if made.has("--rotary-interleaved"):
        made.mistakes.append("--rotary-interleaved: Megatron-LM refuses it with --multi-latent-attention")
    given = {name: made.number(flag, 0) for flag, name in sizes.items() if made.has(flag)}
    made.set(multi_latent_attention=True, position_embedding_type="rope", **{**LATENT_SIZES, **given})
    kind = made.value("--rope-type") or "yarn"
    unused = [
        "--kv-channels",
        "--add-qkv-bias",
        "--use-rope-scaling",
        "--rotary-seq-len-interpolation-factor",
    ]
    if kind == "yarn" or made.settings.get("rotary_percent") in ("1", "1.0"):
        unused.append("--rotary-percent")
    for flag in unused:
        made.settings.pop(flag.removeprefix("--").replace("-", "_"), None)
        if made.has(flag):
            made.notes.append(f"{flag} has no effect in Megatron-LM with --multi-latent-attention")
    if kind not in ("rope", "yarn"):
        made.mistakes.append(f"--rope-type {shown(kind)}: must be one of rope, yarn")
    factor = made.real("--rotary-scaling-factor", 1.0)
    mscales = made.real("--mscale", 1.0), made.real("--mscale-all-dim", 0.0)
    channels = made.settings["qk_head_dim"] + made.settings["qk_pos_emb_head_dim"]
    if made.mistakes or factor <= 0 or channels < 1:  # the settings' own rules tell of the latter
        if factor <= 0:
            made.mistakes.append(f"--rotary-scaling-factor {factor:g}: must be above 0")
        return
    latent_scaling = table.imported("train.model.yarn", "latent_scaling")
    found = latent_scaling(kind, factor, *mscales, channels, {"original_max_position_embeddings": 4096})
    made.set(**{name: value for name, value in found.items() if value is not None})


def _positions(made: Translation) -> None:
    if made.has("--multi-latent-attention"):
        return
    rope = made.settings.get("position_embedding_type") == "rope"
    relative = made.settings.get("position_embedding_type") == "relative"
    for flag in ("--relative-attention-num-buckets", "--relative-attention-max-distance"):
        if made.has(flag) and relative:
            made.set(**{flag[2:].replace("-", "_"): made.value(flag)})
        elif made.has(flag):
            made.notes.append(f"{flag} has no effect without --position-embedding-type relative")
    factor = made.real("--rope-scaling-factor", 8.0)
    if made.has("--use-rope-scaling"):
        scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0}
        scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        made.set(rope_scaling=scaling)
    if made.has("--rotary-seq-len-interpolation-factor"):
        interpolation = made.real("--rotary-seq-len-interpolation-factor", 1.0)
        made.set(rope_scaling={"rope_type": "linear", "factor": interpolation})
    if not rope:
        for name in ("rotary_base", "rotary_percent", "rope_scaling"):
            if made.settings.pop(name, None) is not None:
                made.notes.append(f"--{name.replace('_', '-')} has no effect: nothing is rotated")
    elif made.settings.get("rotary_percent") in ("1", "1.0"):
        made.settings.pop("rotary_percent")
    if rope and made.has("--rotary-interleaved"):
        made.set(rotary_interleaved=True)


def _layers(made: Translation) -> None:
    """The pattern of a hybrid, whose layers are all Mamba where nothing says it."""
    pattern = made.settings.get("hybrid_override_pattern")
    if pattern is not None:
        if "/" in pattern:
            made.mistakes.append(
                f"hybrid pattern {pattern}: mt has no multi-token prediction; end it before /"
            )
        made.settings["hybrid_override_pattern"] = pattern.replace("|", "")  # ends of pipeline stages
        if "M" not in pattern and made.script not in ("pretrain_mamba.py", "pretrain_hybrid.py"):
            return
    elif made.script in ("pretrain_mamba.py", "pretrain_hybrid.py"):
        ratios = [f for f in ("--hybrid-attention-ratio", "--hybrid-mlp-ratio") if made.real(f, 0.0)]
        if ratios:
            made.mistakes.append(f"{ratios[0]}: write the layers out: --hybrid-override-pattern M*M-...")
        elif (layers := made.number("--num-layers", 0)) > MOST_MAMBA_LAYERS:
            made.mistakes.append(f"--num-layers {layers}: must be at most {MOST_MAMBA_LAYERS} for Mamba")
        else:
            made.set(hybrid_override_pattern="M" * layers)


def _predictions(made: Translation) -> None:
    """Multi-token prediction."""
    depths = made.number("--mtp-num-layers", 0)
    if depths:
        factor = made.real("--mtp-loss-scaling-factor", 0.1)
        made.set(mtp_num_layers=depths, mtp_loss_scaling_factor=factor)
    elif made.has("--mtp-loss-scaling-factor"):
        made.notes.append("--mtp-loss-scaling-factor has no effect without --mtp-num-layers")


def _experts(made: Translation) -> None:
    experts = made.number("--num-experts", 0)
    if experts:
        made.set(num_experts=experts)
        if not made.has("--disable-bias-linear"):
            made.mistakes.append("--num-experts: experts have no biases here; give --disable-bias-linear too")
    tensor, parallel = _tensor(made), made.number("--expert-model-parallel-size", 1)
    cut = made.number("--expert-tensor-parallel-size", tensor)
    if cut != tensor and experts:
        if parallel * cut % tensor:
            made.mistakes.append(
                f"--expert-tensor-parallel-size {cut}: experts are cut over the {tensor} tensor-parallel"
                " processes, like other matrices; leave it out"
            )
        parallel = max(parallel * cut // tensor, 1)
        made.notes.append(
            f"experts are cut over {tensor} tensor-parallel and {parallel} expert-parallel processes; results"
            " are the same"
        )
    if experts and parallel != 1:
        made.set(expert_model_parallel_size=parallel)
    kinds = made.settings.get("moe_router_load_balancing_type")
    if isinstance(kinds, list):
        if len(kinds) > 1:
            made.mistakes.append(f"--moe-router-load-balancing-type {' '.join(kinds)}: give one of them")
        made.settings["moe_router_load_balancing_type"] = kinds[0] if kinds else "aux_loss"
    if made.settings.get("moe_router_load_balancing_type") == "sinkhorn":
        # Megatron-LM's choice of the score function, whatever its flags say
        one = made.number("--moe-router-topk", 2) == 1
        made.set(moe_router_score_function="sigmoid" if one else "softmax", moe_router_pre_softmax=not one)
    if made.settings.get("moe_router_score_function") == "sigmoid" and made.has("--moe-router-pre-softmax"):
        made.settings.pop("moe_router_pre_softmax", None)
        made.notes.append("--moe-router-pre-softmax has no effect beside --moe-router-score-function sigmoid")
    weights = made.settings.get("moe_aux_loss_coeff")
    if isinstance(weights, list):
        made.settings["moe_aux_loss_coeff"] = weights[0] if weights else 0.0
    if not experts:
        for name in [name for name in made.settings if name.startswith("moe_")]:
            made.settings.pop(name)


def _tensor(made: Translation) -> int:
    return made.number("--tensor-model-parallel-size", 1)


def _layout(made: Translation) -> None:
    tensor, stages = _tensor(made), made.number("--pipeline-model-parallel-size", 1)
    if made.has("--sequence-parallel") and tensor > 1:
        made.set(sequence_parallel=True)
    layers = made.number("--num-layers", 0) or made.number("--encoder-num-layers", 0)
    blocks = made.number("--num-layers-per-virtual-pipeline-stage", 0)
    if virtual := made.number("--num-virtual-stages-per-pipeline-rank", 0):
        if layers % (stages * virtual) and not made.has(*UNEVEN):
            made.mistakes.append(
                f"--num-virtual-stages-per-pipeline-rank {virtual}: {layers} layers do not divide into"
                f" {stages} x {virtual} stages"
            )
        blocks = layers // (stages * virtual)
    if not _uneven_stages(made, layers, stages, virtual, blocks) and (
        blocks and stages > 1 and blocks * stages != layers
    ):
        made.set(num_layers_per_virtual_pipeline_stage=blocks)
    full = made.has("--use-megatron-fsdp") and (
        made.value("--data-parallel-sharding-strategy") == "optim_grads_params"
    )
    if full or made.value("--zero-stage") == "3":
        made.set(data_parallel_sharding="full")


def _uneven_stages(made: Translation, layers: int, stages: int, virtual: int, blocks: int) -> bool:
    """Sets the layout of stages that flags of UNEVEN give; returns whether there are any.

    virtual: stages of each process, or 0; blocks: of each of these, or 0.
    """
    given = [flag for flag in UNEVEN if made.has(flag)]
    if not given or stages < 1:
        return False
    if stages == 1:
        made.notes.append(f"{given[0]} has no effect with one pipeline stage")
        return True
    embedding, loss = (made.has(f"--account-for-{part}-in-pipeline-split") for part in ("embedding", "loss"))
    virtual = virtual or (max((layers + embedding + loss) // stages // blocks, 1) if blocks else 1)
    if (layout := made.value("--pipeline-model-parallel-layout")) is not None:
        try:
            stage_lengths = table.imported("train.parallel.stage_layout", "stage_lengths")
            lengths = stage_lengths(layout, empty=True, predictions=made.settings.get("mtp_num_layers") or 0)
        except ValueError as error:
            made.mistakes.append(f"--pipeline-model-parallel-layout {shown(layout)} {error}")
            return True
    elif embedding or loss:
        lengths = megatron_stages.ends_counted(layers, stages, virtual, embedding, loss)
    else:
        ends = ("--decoder-first-pipeline-num-layers", "--decoder-last-pipeline-num-layers")
        first, last = (made.number(flag, 0) if made.has(flag) else None for flag in ends)
        lengths = megatron_stages.ends_given(layers, stages, virtual, first, last)
    full = megatron_stages.without_empty(lengths) if lengths else None
    if full is None:
        made.mistakes.append(f"{given[0]}: {layers} layers do not divide into {stages} x {virtual} stages so")
        return True
    if full != lengths:
        made.notes.append(
            f"{given[0]}: a stage without a layer takes one from the nearest stage; results are the same"
        )
    made.set(pipeline_model_parallel_layout=megatron_stages.as_layout(full))
    return True


def _tokenizer(made: Translation) -> None:
    kind, size = made.value("--tokenizer-type"), made.value("--vocab-size")
    names = {
        "GPT2BPETokenizer", "BertWordPieceLowerCase", "BertWordPieceCase", "SentencePieceTokenizer",
        "GPTSentencePieceTokenizer", "HuggingFaceTokenizer", "Llama2Tokenizer", "TikTokenizer",
        "NullTokenizer", "ByteLevelTokenizer",
    }  # fmt: skip
    if kind == "SFTTokenizer" or (kind and "Multimodal" in kind):
        made.mistakes.append(f"--tokenizer-type {kind}: mt has it not; {', '.join(sorted(names))} are here")
    elif kind is not None:
        made.set(tokenizer_type=kind)
    kind = made.settings.get("tokenizer_type")
    if size is not None:
        if kind == "NullTokenizer":
            made.set(tokenizer_vocab_size=made.number("--vocab-size", 0) + 1)
        elif kind == "TikTokenizer":
            made.set(tokenizer_vocab_size=made.number("--vocab-size", 0))
        else:
            made.notes.append(f"--vocab-size has no effect: {kind} has its own vocabulary")
    reads = {
        "vocab_file": ("GPT2BPETokenizer", "BertWordPieceLowerCase", "BertWordPieceCase"),
        "merge_file": ("GPT2BPETokenizer",),
        "tokenizer_model": (
            "SentencePieceTokenizer", "GPTSentencePieceTokenizer", "HuggingFaceTokenizer", "Llama2Tokenizer",
            "TikTokenizer",
        ),
        "tiktoken_pattern": ("TikTokenizer",),
        "tiktoken_num_special_tokens": ("TikTokenizer",),
    }  # fmt: skip
    for name, kinds in reads.items():
        if name in made.settings and kind in names and kind not in kinds:
            made.settings.pop(name)
            made.notes.append(f"--{name.replace('_', '-')} has no effect: {kind} does not read it")
    if not made.trains:
        return
    padded = made.number("--padded-vocab-size", 0)
    multiple = made.number("--make-vocab-size-divisible-by", 128) * _tensor(made)
    if padded or multiple != 128:
        made.set(make_vocab_size_divisible_by=padded or multiple)


def _lengths(made: Translation) -> None:
    """--fim-rate, --eval-interval, and what --save-retain-interval means for other checkpoints."""
    if (interval := made.value("--eval-interval")) is not None:
        made.set(eval_interval=interval)
    if made.has("--fim-data"):
        made.set(fim_rate=made.value("--fim-rate") or 0.5)
    if made.has("--save-retain-interval"):
        made.set(keep_last=1)  # Megatron-LM then removes all checkpoints but the last one


def _data(made: Translation) -> None:
    if (file := made.value("--data-args-path")) is not None:
        made.set(data_path=shlex.split(_text(file, made)))
    if (file := made.value("--per-split-data-args-path")) is not None:
        try:
            found = json.loads(_text(file, made) or "{}")
            for split in ("train", "valid", "test"):
                if values := found.get(split):
                    words = shlex.split(values) if isinstance(values, str) else [str(word) for word in values]
                    made.set(**{f"{split}_data_path": words})
        except (ValueError, AttributeError, TypeError) as error:
            made.mistakes.append(f"--per-split-data-args-path {file}: must be JSON of three lists: {error}")
    if made.has("--mock-data") and "data_path" not in made.settings:
        made.set(data_path=[_mock_prefix(made)])
        made.notes.append(
            f"--mock-data: the documents 1, 2, 3 ... are written to {_mock_prefix(made)}.bin and .idx"
        )


def _write_mock_data(made: Translation) -> None:
    write_mock_data = table.imported("indexed.mock", "write_mock_data")
    write_mock_data(_mock_prefix(made), configuration(made).tokenizer)


def _mock_prefix(made: Translation) -> str:
    return str(Path(made.value("--data-cache-path") or f"{_save(made)}_mock") / "mock_text_document")


def _text(file: str, made: Translation) -> str:
    try:
        return paths.regular(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        made.mistakes.append(f"{file}: cannot be read: {error}; check the path")
        return ""


def _save(made: Translation) -> str:
    return made.value("--save") or f"{Path(made.script).stem}_run"


def _checkpoints(made: Translation) -> None:
    save, load = made.value("--save"), made.value("--load") or made.value("--bert-load")
    made.set(save=_save(made))
    if save is None:
        made.notes.append(f"no --save is given: the log and the last checkpoint go to {_save(made)}/")
    if made.has("--bert-load"):
        made.set(finetune=True)
    if load is None or (save is not None and Path(load).resolve() == Path(save).resolve()):
        for name in ("finetune", "no_load_optim", "ckpt_step"):
            made.settings.pop(name, None)
        return
    if _has_checkpoint(load) or made.has("--exit-on-missing-checkpoint", "--ckpt-step"):
        made.set(load=load)
        return
    made.notes.append(f"--load {load}: has no checkpoint; the run starts anew, as in Megatron-LM")
    for name in ("finetune", "no_load_optim"):
        made.settings.pop(name, None)


def _has_checkpoint(folder: str) -> bool:
    """Whether a directory holds a checkpoint of any kind."""
    names = ("latest_checkpointed_iteration.txt", ".metadata", "config.json", "release")
    here = Path(folder)
    return any((here / name).exists() for name in names) or any(here.glob("step_*/state.json"))


def _checkpoint_settings(made: Translation) -> None:
    """--use-checkpoint-args: the architecture is that of the checkpoint."""
    if not made.has("--use-checkpoint-args") or "load" not in made.settings:
        return
    open_checkpoint = table.imported("train.checkpoint.open", "open_checkpoint")
    training: tuple[str, ...] = table.imported("train.checkpoint.hf_settings", "TRAINING_SETTINGS")

    found = dataclasses.asdict(open_checkpoint(made.settings["load"]).config)
    kept = {name: value for name, value in found.items() if name not in training and value is not None}
    for name in found.keys() - set(training):
        made.settings.pop(name, None)
    made.set(**kept)


def _tools(made: Translation) -> None:
    """What the commands other than `mt train` need."""
    load, save = made.value("--load"), made.value("--save") or made.value("--output-path")
    if load is not None:
        made.set(load=load)
    if made.path == ("generate",):
        if save is not None:
            made.set(output=str(Path(save).with_suffix("")))
        if (file := made.value("--prompt-file")) is not None:
            made.set(input=[file])
    elif made.path[0] == "eval":
        made.set(output=save or f"eval_{made.path[-1]}")
    elif made.path == ("checkpoint", "convert"):
        saver = made.value("--saver") or "core"
        made.set(format="hf" if "hf" in saver else "torch")
    elif made.path == ("data", "merge") and len(made.settings.get("input", [])) > 1:
        made.mistakes.append("--input: merge_datasets.py takes one directory")


def _logs(made: Translation) -> None:
    """Megatron-LM writes to Weights & Biases only with a project's name."""
    for name in [n for n in made.settings if n.startswith("wandb_") and not made.settings[n]]:
        made.settings.pop(name)
    if "wandb_project" not in made.settings:
        for name in ("wandb_exp_name", "wandb_entity", "wandb_save_dir"):
            if made.settings.pop(name, None) is not None:
                made.notes.append(f"--{name.replace('_', '-')} has no effect without --wandb-project")


COMPUTED: tuple[Callable[[Translation], None], ...] = (
    _optimizer, _precision, _activation, _attention, _latents, _positions, _layers, _predictions,
    _experts, _layout,
    _tokenizer, _lengths, _logs, _data, _checkpoints, _checkpoint_settings,
)  # fmt: skip
OTHERS: tuple[Callable[[Translation], None], ...] = (_tokenizer, _tools)


def _outline(path: table.Path) -> type[Any]:
    """The configuration class of a command, if possible without the libraries of the command."""
    return table.outline_of(path) or table.load(path)[1]


def configuration(made: Translation) -> Any:
    """The configuration of the command; raises UserError where it is wrong.

    It is an outline's where that can be made without the libraries of the command: importing torch takes
    seconds. The command itself checks what the outline cannot.
    """
    with contextlib.suppress(Missing):
        return as_configuration(made, _outline(made.path))
    return as_configuration(made, table.load(made.path)[1])


def as_configuration(made: Translation, cls: type[Any]) -> Any:
    """The configuration of this class, that of the command or its outline; raises UserError."""
    names = {s.path[-1]: s.name for s in settings(cls)}
    tree = {names[name]: value for name, value in made.settings.items()}
    return build(cls, (made.script, tree), hint=hints.for_setting)


def _words(name: str, value: Any) -> list[str]:
    """A setting as a flag of mt."""
    flag = "--" + name.replace("_", "-")
    if value is True:
        return [flag]
    if value is False:
        return ["--no-" + name.replace("_", "-")]
    if isinstance(value, dict):
        return [f"{flag}={','.join(f'{key}={item}' for key, item in value.items())}"]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]


def _as_yaml(made: Translation, config: Any, launcher: Sequence[str] | None = None) -> str:
    """The settings by their groups, with a comment after those that the command line does not name.

    launcher: torchrun's arguments.
    """
    groups: dict[str, list[str]] = {}
    for setting in settings(type(config)):
        name = setting.path[-1]
        if name not in made.settings:
            continue
        value = functools.reduce(getattr, setting.path, config)
        value = list(value) if isinstance(value, tuple) else value
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
        text = text.removesuffix("\n").removesuffix("\n...")
        indent = "  " if len(setting.path) > 1 else ""
        comment = f"  # the default of {made.script}" if name in made.defaults else ""
        groups.setdefault(".".join(setting.path[:-1]), []).append(f"{indent}{name}: {text}{comment}")
    launch = f"launch {shlex.join(launcher)} " if launcher else ""
    lines = [f"# mt {launch}{' '.join(made.path)} --config THIS_FILE"]
    for group, own in groups.items():
        lines += [*([f"{group}:"] if group else []), *own]
    return "\n".join(lines) + "\n"


def _help(columns: int) -> str:
    rows = [(name, script.cannot or f"mt {' '.join(script.command)}") for name, script in scripts().items()]
    return "\n".join(
        [
            "mt megatron [torchrun FLAGS] SCRIPT.py ARGS...",
            "",
            *_filled(
                "Does what a script of Megatron-LM does with these arguments, with its defaults.", columns
            ),
            "",
            *_columns(
                [
                    (PRINT, "prints the settings that it amounts to, for `mt train --config`"),
                    ("SCRIPT.py --help", "says what each flag of Megatron-LM is here"),
                    ("SCRIPT.py --help WORD", "the same for flags with this word in their name or meaning"),
                ],
                columns,
            ),
            "",
            *_columns(rows, columns),
        ]
    )


def _script_help(name: str, words: Sequence[str], columns: int) -> str:
    """What a script is here, and each flag of Megatron-LM that has one of the words, or all flags."""
    script = _find(name)
    if script.cannot is not None:
        raise UserError(f"{name}: {script.cannot}")
    command = f"mt {' '.join(script.command)}"
    rows = [(f"{flag}{VALUES[entry.takes]}", _meaning(entry)) for flag, entry in entries().items()]
    found = [row for row in rows if not words or any(w.lower() in " ".join(row).lower() for w in words)]
    if not found:
        raise UserError(
            f"mt megatron {name}: no flag of Megatron-LM has {' or '.join(words)} in its name or meaning;"
            " --help without a word lists all"
        )
    story = (
        f"Does what the script does, by `{command}`. {PRINT} prints the settings, those of the script's"
        f" defaults too; `{command} --help` describes them."
    )
    lines = [f"mt megatron {name} ARGS...", "", *_filled(story, columns), "", *_columns(found, columns)]
    return "\n".join(lines)


VALUES = {0: "", 1: " X", None: " X..."}


def _meaning(entry: Entry) -> str:
    if entry.cannot is not None:
        return f"is refused: {entry.cannot}"
    if entry.no_effect is not None:
        return f"has no effect: {entry.no_effect}"
    if entry.computed is not None:
        return entry.computed
    if entry.setting is not None:
        return f"sets {entry.setting}"
    return "sets " + ", ".join(f"{name}: {str(value).lower()}" for name, value in entry.settings.items())


def _filled(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, columns, break_on_hyphens=False)


def _columns(rows: Sequence[tuple[str, str]], columns: int) -> list[str]:
    """Two columns; a name that is too long for the first one has a line of its own."""
    indent = min(max(len(name) for name, _ in rows), columns // 2) + 4
    lines = []
    for name, text in rows:
        own = textwrap.wrap(
            text, columns, initial_indent=" " * indent, subsequent_indent=" " * indent, break_on_hyphens=False
        )
        if len(name) + 4 <= indent:
            own[0] = f"  {name:<{indent - 2}}{own[0][indent:]}"
        else:
            own.insert(0, f"  {name}")
        lines += own
    return lines
