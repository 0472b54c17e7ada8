"""Changed Hugging Face directories: the model that transformers makes of them, or a refusal in one line.

Every key of a config.json is removed, changed and given values of other types; tensors are removed, added,
renamed and cut. Another model in silence, and a traceback, are failures.
"""

import json
import logging
import random
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mt.core.config import UserError
from mt.tests.train.checkpoint.transformers_models import (
    MODELS,
    TOLERANCE,
    our_logits,
    random_model,
    their_logits,
)
from mt.train.checkpoint.open import open_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
EAGER = {"attn_implementation": "eager", "dtype": torch.float32}
TEXTS = ("x", "relu", "gelu", "silu", "gelu_pytorch_tanh", "sliding_attention", "full_attention", "default")
OTHERS = (None, True, False, [], {}, -1, 0, 1, 2, 3, 0.5, 1.5, 1e30)
# keys that other models have, and that would change this one if it had them
ADDED = {
    "alibi": True, "attention_bias": True, "mlp_bias": True, "use_bias": True, "qkv_bias": False,
    "logits_scaling": 2.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.5, "sliding_window": 4,
    "residual_multiplier": 0.5, "final_logit_softcapping": 1.0, "attn_logit_softcapping": 1.0,
    "query_pre_attn_scalar": 3, "partial_rotary_factor": 0.5, "rotary_pct": 0.5, "rope_theta": 77.0,
    "rotary_emb_base": 77.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "is_decoder": True,
    "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 4,
    "num_key_value_heads": 1, "per_layer_config": {"0": {"sliding_window": 4}}, "tie_word_embeddings": True,
    "parallel_attn": False, "multi_query": False, "hidden_act": "relu", "use_bidirectional_attention": True,
    "pruned_heads": {"0": [1]}, "position_embedding_type": "relative_key", "rope_local_base_freq": 50.0,
    "sliding_window_pattern": 2, "original_max_position_embeddings": 8, "layer_norm_eps": 0.1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    transformers.utils.logging.set_verbosity_warning()


def changed_values(value):
    """Other values of a key: its type's, and other types'."""
    yield from OTHERS
    yield from TEXTS
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (str(value), [value], value + 1, value * 2, value / 2, -value)
    elif isinstance(value, list):
        yield from (value[:-1], [*value, *value[:1]], value[::-1], dict.fromkeys(map(str, value)))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield {k: v for k, v in value.items() if k != key}
            for other in changed_values(inner):
                yield {**value, key: other}
        yield {**value, "factor": 2.0, "rope_type": "linear"}
        yield {**value, "partial_rotary_factor": 0.5}


def changed_settings(settings):
    """(what is changed, the config.json) of every change."""
    for key, value in settings.items():
        if key != "model_type":
            yield f"without {key}", {k: v for k, v in settings.items() if k != key}
            for other in changed_values(value):
                if other != value or type(other) is not type(value):
                    yield f"{key} = {other!r}", {**settings, key: other}
    for key, value in ADDED.items():
        yield f"with {key} = {value!r}", {**settings, key: value}


def changed_tensors(tensors):
    """(what is changed, the tensors) of every change."""
    first = {name.replace(".0.", ".#."): name for name in tensors}  # of each kind, the first layer's
    for name in dict.fromkeys(first.values()):
        tensor = tensors[name]
        rest = {n: t for n, t in tensors.items() if n != name}
        yield f"without {name}", rest
        yield f"{name} renamed", {**rest, name + "s": tensor}
        yield f"{name} cut", {**rest, name: tensor[:-1].contiguous()}
        yield f"{name} flat", {**rest, name: tensor.flatten().contiguous()}
        yield f"{name} of whole numbers", {**rest, name: tensor.long()}
        yield f"{name} twice", {**tensors, "model." + name: tensor + 1}
        short = name.partition(".")[2]
        if short not in tensors:
            yield f"{name} and {short}", {**tensors, short: tensor + 1}
            yield f"{name} as {short}", {**rest, short: tensor}
    embedding = next(
        n for n in tensors if "wte." in n or "shared.w" in n or ("embed" in n and "norm" not in n.lower())
    )
    rows = tensors[embedding]
    heads = ("lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight")
    for name in (*heads, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        if name not in tensors:
            yield f"with {name}, another", {**tensors, name: rows.flip(0).contiguous()}
            yield f"with {name}, the same", {**tensors, name: rows.clone()}


def our_result(folder):
    """Our logits of a directory, or None where it is refused."""
    try:
        return our_logits(open_checkpoint(folder).load_model())
    except UserError:
        return None


def their_result(kind, folder):
    """transformers' logits, or None where it refuses a directory or fills weights with random numbers."""
    try:
        model, report = kind.from_pretrained(folder, output_loading_info=True, **EAGER)
        if report["missing_keys"] or report["mismatched_keys"]:
            return None
        return their_logits(model.eval())
    except Exception:  # whatever it raises: there is no model to compare with
        return None


def check(what, kind, folder):
    ours = our_result(folder)
    if ours is None:
        return False
    theirs = their_result(kind, folder)
    if theirs is not None:
        assert ours.shape == theirs.shape, what
        assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max(), what
    return theirs is not None


def check_changes(name, folder, choose):
    """Compares the results of the chosen changes; returns how many gave equal models."""
    model = random_model(name)
    kind = type(model)
    model.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["use_cache"] = True
    assert check("as it is", kind, folder)
    same = 0
    for what, changed in choose(list(changed_settings(settings))):
        (folder / "config.json").write_text(json.dumps(changed))
        same += check(f"{name}, {what}", kind, folder)
    (folder / "config.json").write_text(json.dumps(settings))
    whole, spare = folder / "model.safetensors", folder / "spare"
    shutil.copy(whole, spare)
    for what, changed in choose(list(changed_tensors(load_file(spare)))):
        save_file(changed, whole, {"format": "pt"})
        same += check(f"{name}, {what}", kind, folder)
    return same


QUICK = ("llama", "gemma3_text", "bert")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS]
)
def test_a_changed_directory_is_transformers_model_or_refused(name, tmp_path):
    """A few changes of each model; the slow test makes all of them."""
    few = random.Random(name)
    check_changes(name, tmp_path, lambda changes: few.sample(changes, 5))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_change_of_a_directory_is_transformers_model_or_refused(name, tmp_path):
    assert check_changes(name, tmp_path, lambda changes: changes), "no change is the same to both"
