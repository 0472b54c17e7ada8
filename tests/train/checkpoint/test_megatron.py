"""Megatron-LM's torch format: checkpoints of megatron-core's model, the same divided and renamed by hand, and
checkpoints that mt writes.
"""

import argparse
import os
import shutil

import pytest
import torch

from mt.core.config import UserError
from mt.tests.train.checkpoint.transformers_models import (
    assert_near,
    assert_same_weights,
    our_logits,
    random_model,
    their_logits,
    write,
)
from mt.tokenizer.tokenizer import TokenizerConfig
from mt.train.checkpoint.commands import ConvertConfig, InspectConfig, convert, inspect
from mt.train.checkpoint.open import open_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
SIXTY = TokenizerConfig(tokenizer_type="NullTokenizer", tokenizer_vocab_size=60)
FILE = "model_optim_rng.pt"


def convert_and_load(source, out, **settings):
    convert(ConvertConfig(source=str(source), output=str(out), tokenizer=SIXTY, **settings))
    return open_checkpoint(out).load_model()


@pytest.mark.parametrize("kind", ["gpt", "llama", "mla", "pairs"])
def test_a_model_of_megatron_gives_its_logits_and_is_written_back_bit_for_bit(megatron, kind, tmp_path):
    ours = convert_and_load(megatron / kind, tmp_path / "ours")
    reference = torch.load(megatron / kind / "logits.pt")
    with torch.no_grad():
        found = ours.logits(ours(reference["tokens"]))[..., :60]
    expected = reference["logits"][..., :60]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    checkpoint = open_checkpoint(tmp_path / "ours")
    assert (checkpoint.config.vocab_size, checkpoint.config.padded_vocab_size, checkpoint.seq_length) == (
        60,
        64,
        24,
    )

    convert(
        ConvertConfig(
            source=str(tmp_path / "ours"),
            output=str(tmp_path / "back"),
            format="torch",
            transformer_impl="local",
        )
    )
    before = torch.load(megatron / kind / "iter_0000007" / "mp_rank_00" / FILE, weights_only=False)
    after = torch.load(tmp_path / "back" / "release" / "mp_rank_00" / FILE, weights_only=False)
    weights = {n: t for n, t in before["model"].items() if isinstance(t, torch.Tensor)}
    assert after["model"].keys() == weights.keys()
    assert all(torch.equal(after["model"][n][:60], weights[n][:60]) for n in weights)
    same_settings = (
        "num_layers",
        "hidden_size",
        "num_query_groups",
        "kv_channels",
        "position_embedding_type",
        "normalization",
        "swiglu",
        "padded_vocab_size",
        "rotary_base",
        "rotary_interleaved",
    )
    assert all(getattr(after["args"], n) == getattr(before["args"], n) for n in same_settings)
    assert_same_weights(convert_and_load(tmp_path / "back", tmp_path / "ours again"), ours)


@pytest.mark.parametrize("name", ["apply_layernorm_1p", "layernorm_zero_centered_gamma"])
def test_norms_that_are_stored_less_one_give_the_same_logits(megatron, name, tmp_path):
    """Megatron-LM's local layers have no such norms: one is taken from the weights of theirs."""
    state = torch.load(megatron / "llama" / "iter_0000007" / "mp_rank_00" / FILE, weights_only=False)
    for key, tensor in state["model"].items():
        if isinstance(tensor, torch.Tensor) and "layernorm" in key:
            tensor -= 1
    state["args"] = argparse.Namespace(**vars(state["args"]), **{name: True})
    file = tmp_path / "less" / "mp_rank_00" / FILE
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    ours = convert_and_load(tmp_path / "less", tmp_path / "ours")
    reference = torch.load(megatron / "llama" / "logits.pt")
    with torch.no_grad():
        torch.testing.assert_close(
            ours.logits(ours(reference["tokens"]))[..., :60], reference["logits"][..., :60]
        )
    back = ConvertConfig(
        source=str(tmp_path / "ours"), output=str(tmp_path / "back"), format="torch", transformer_impl="local"
    )
    convert(back)
    after = torch.load(next((tmp_path / "back").rglob(FILE)), weights_only=False)
    assert after["args"].apply_layernorm_1p
    assert_same_weights(convert_and_load(tmp_path / "back", tmp_path / "again"), ours)


# Megatron-LM's column-parallel layers
ROWS = (
    "linear_qkv.", "linear_fc1.", "word_embeddings.", "output_layer.", "linear_q_down_proj.",
    "linear_q_up_proj.", "linear_kv_down_proj.", "linear_kv_up_proj.",
)  # fmt: skip
COLUMNS = ("linear_proj.weight", "linear_fc2.weight")


def divide(megatron, kind, out, *, size, stages, chunks=1):
    """The checkpoint as `size` x `stages` ranks would have written it. chunks: of an interleaved pipeline."""
    state = torch.load(megatron / kind / "iter_0000007" / "mp_rank_00" / FILE, weights_only=False)
    model = {n: t for n, t in state["model"].items() if isinstance(t, torch.Tensor)}
    args = argparse.Namespace(
        **{**vars(state["args"]), "tensor_model_parallel_size": size, "pipeline_model_parallel_size": stages}
    )
    per_chunk = 4 // (stages * chunks)
    for stage in range(stages):
        for rank in range(size):
            saved = {"args": args, "checkpoint_version": 3.0, "iteration": 7}
            for chunk in range(chunks):
                start = (chunk * stages + stage) * per_chunk
                part = {}
                for name, tensor in model.items():
                    if name.startswith("decoder.layers."):
                        number, rest = name.removeprefix("decoder.layers.").split(".", 1)
                        if not start <= int(number) < start + per_chunk:
                            continue
                        name = f"decoder.layers.{int(number) - start}.{rest}"
                    elif name.startswith("embedding."):
                        if start:
                            continue
                    elif start + per_chunk < 4:
                        continue
                    part[name] = shard(name, tensor, rank, size, gated=args.swiglu)
                if (
                    start + per_chunk == 4 and start and kind == "gpt"
                ):  # the last stage has a copy of the tied embedding
                    part["output_layer.weight"] = shard(
                        "output_layer.", model["embedding.word_embeddings.weight"], rank, size, gated=False
                    )
                saved["model" if chunks == 1 else f"model{chunk}"] = part
            folder = out / "iter_0000007" / (f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else ""))
            folder.mkdir(parents=True)
            torch.save(saved, folder / FILE)
    (out / "latest_checkpointed_iteration.txt").write_text("7\n")
    return out


def shard(name, tensor, rank, size, *, gated):
    if name.endswith(COLUMNS):
        return tensor.chunk(size, dim=1)[rank].clone()
    if not any(part in name for part in ROWS):
        return tensor
    halves = tensor.chunk(2) if gated and "linear_fc1" in name else (tensor,)
    return torch.cat([half.chunk(size)[rank] for half in halves])


@pytest.mark.parametrize("kind", ["gpt", "llama", "mla"])
@pytest.mark.parametrize(("size", "stages", "chunks"), [(2, 1, 1), (2, 2, 1), (1, 2, 2)])
def test_the_shards_of_many_ranks_are_joined(megatron, kind, size, stages, chunks, tmp_path):
    divide(megatron, kind, tmp_path / "cut", size=size, stages=stages, chunks=chunks)
    whole = convert_and_load(megatron / kind, tmp_path / "whole")
    assert_same_weights(convert_and_load(tmp_path / "cut", tmp_path / "ours"), whole)
    if chunks == 1:
        settings = {
            "target_tensor_parallel_size": size,
            "target_pipeline_parallel_size": stages,
            "transformer_impl": "local",
            "make_vocab_size_divisible_by": 32,
        }
        convert(
            ConvertConfig(
                source=str(tmp_path / "whole"), output=str(tmp_path / "back"), format="torch", **settings
            )
        )
        for file in sorted((tmp_path / "cut").glob(f"iter_*/*/{FILE}")):
            before = torch.load(file, weights_only=False)["model"]
            after = torch.load(tmp_path / "back" / "release" / file.parent.name / FILE, weights_only=False)[
                "model"
            ]
            assert after.keys() == before.keys()
            padded = lambda n: "word_embeddings" in n or "output_layer" in n
            assert all(torch.equal(after[n], before[n]) for n in before if not padded(n))


def test_weight_names_of_transformer_engine_and_of_older_versions_are_known(megatron, tmp_path):
    whole = convert_and_load(megatron / "gpt", tmp_path / "whole")
    convert(ConvertConfig(source=str(tmp_path / "whole"), output=str(tmp_path / "te"), format="torch"))
    names = torch.load(tmp_path / "te" / "release" / "mp_rank_00" / FILE, weights_only=False)["model"]
    assert "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in names
    assert "decoder.layers.3.mlp.linear_fc1.layer_norm_bias" in names
    assert_same_weights(convert_and_load(tmp_path / "te", tmp_path / "from te"), whole)
    older = {
        "self_attention.linear_qkv": "attention.query_key_value",
        "self_attention.linear_proj": "attention.dense",
        "pre_mlp_layernorm": "post_attention_layernorm",
        "mlp.linear_fc1": "mlp.dense_h_to_4h",
        "mlp.linear_fc2": "mlp.dense_4h_to_h",
    }
    channels, heads = 8, 4
    for version in (0, 1.0, 2.0):
        out = tmp_path / f"version {version}"
        state = torch.load(megatron / "gpt" / "iter_0000007" / "mp_rank_00" / FILE, weights_only=False)
        layers = {}
        for name, tensor in state["model"].items():
            if name.startswith("decoder.") and tensor is not None:
                name = name.removeprefix("decoder.")
                for new, old in older.items():
                    name = name.replace(new, old)
                if "query_key_value" in name and version < 2:
                    by_head = tensor.view(heads, 3, channels, -1)
                    tensor = (
                        by_head.permute(1, 0, 2, 3) if version == 0 else by_head.permute(0, 2, 1, 3)
                    ).reshape(tensor.shape)
                layers[name] = tensor
        embedding = {
            n: {"weight": state["model"][f"embedding.{n}.weight"]}
            for n in ("word_embeddings", "position_embeddings")
        }
        state["model"] = {"language_model": {"embedding": embedding, "transformer": layers}}
        state["checkpoint_version"] = version
        (out / "iter_0000007" / "mp_rank_00").mkdir(parents=True)
        torch.save(state, out / "iter_0000007" / "mp_rank_00" / FILE)
        assert_same_weights(convert_and_load(out / "iter_0000007", tmp_path / f"from {version}"), whole)


def test_transformer_engine_has_projections_to_latents_on_every_rank(megatron, tmp_path):
    """megatron-core's TELinear of parallel mode `duplicated`; the norms of latents are in what they feed."""
    whole = convert_and_load(megatron / "mla", tmp_path / "whole")
    settings = {"format": "torch", "target_tensor_parallel_size": 2, "make_vocab_size_divisible_by": 32}
    convert(ConvertConfig(source=str(tmp_path / "whole"), output=str(tmp_path / "te"), **settings))
    first, second = (
        torch.load(tmp_path / "te" / "release" / f"mp_rank_0{rank}" / FILE, weights_only=False)["model"]
        for rank in range(2)
    )
    own = "decoder.layers.0.self_attention."
    for name, rows in (("q_down", 20), ("kv_down", 16)):
        weight = first[f"{own}linear_{name}_proj.weight"]
        assert len(weight) == rows
        assert torch.equal(weight, second[f"{own}linear_{name}_proj.weight"])
    assert len(first[f"{own}linear_kv_up_proj.weight"]) == 2 * (6 + 8)
    norms = {f"{own}linear_q_up_proj.layer_norm_weight", f"{own}linear_kv_up_proj.layer_norm_weight"}
    assert norms | {"decoder.layers.0.input_layernorm.weight"} <= first.keys()
    assert_same_weights(convert_and_load(tmp_path / "te", tmp_path / "from te"), whole)


def test_inspection_reads_a_megatron_checkpoint_directly_and_a_missing_tokenizer_is_named(megatron):
    found = inspect(InspectConfig(checkpoint=str(megatron / "llama")))
    assert (found["library"], found["step"], found["settings"]["model"]["activation"]) == (
        "Megatron-LM",
        7,
        "swiglu",
    )
    assert found["parameters"] == sum(
        p.numel()
        for p in torch.load(megatron / "llama" / "iter_0000007" / "mp_rank_00" / FILE, weights_only=False)[
            "model"
        ].values()
        if p is not None
    )
    with pytest.raises(
        UserError, match="keeps no tokenizer in its checkpoints; name it to `mt checkpoint convert`"
    ):
        open_checkpoint(megatron / "llama").load_tokenizer()


class Trap:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_strangers_file_runs_no_code_and_the_message_names_the_unsafe_global(
    megatron, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "stranger" / "mp_rank_00" / FILE
    file.parent.mkdir(parents=True)
    for content in ({"args": Trap()}, {"args": argparse.Namespace(a=Trap())}):
        torch.save(content, file)
        with pytest.raises(
            UserError,
            match=(
                rf"{FILE}: names posix.system, which Megatron-LM does not write there and which may run any"
                r" code; do not use this file"
            ),
        ):
            open_checkpoint(tmp_path / "stranger")
    torch.save({"args": argparse.Namespace(a=shutil.rmtree)}, file)
    with pytest.raises(UserError, match=r"names shutil.rmtree"):
        open_checkpoint(tmp_path / "stranger")
    assert not (tmp_path / "ran").exists()
    torch.save({"model": {}}, file)
    with pytest.raises(UserError, match="holds no `args`"):
        open_checkpoint(tmp_path / "stranger")
    whole = (megatron / "gpt" / "iter_0000007" / "mp_rank_00" / FILE).read_bytes()
    for content in (b"", b"garbage", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"{FILE}: not a whole file of torch.save"):
            open_checkpoint(tmp_path / "stranger")


def refused(source):
    with pytest.raises(UserError) as error:
        open_checkpoint(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_files_and_unsupported_models_are_named(megatron, tmp_path):
    copy = divide(megatron, "gpt", tmp_path / "cut", size=2, stages=2)
    folder = copy / "iter_0000007"
    (folder / "mp_rank_01_001").rename(tmp_path / "aside")
    assert (
        f"has no mp_rank_01_001/{FILE}, but was written by 2 x 2 ranks; copy the checkpoint again"
        in refused(copy)
    )
    (tmp_path / "aside").rename(folder / "mp_rank_01_001_000")
    assert f"has no mp_rank_01_001/{FILE}" in refused(copy)
    (folder / "mp_rank_01_001_000").rename(folder / "mp_rank_01_001")
    shutil.copytree(folder / "mp_rank_01_001", folder / "mp_rank_02_001")
    assert "holds 5 mp_rank folders, but was written by 4 ranks" in refused(copy)
    (copy / "latest_checkpointed_iteration.txt").write_text("8")
    assert "iter_0000008: does not exist, but latest_checkpointed_iteration.txt names it" in refused(copy)
    (copy / "latest_checkpointed_iteration.txt").write_text("soon")
    assert "must hold a number or `release`, not 'soon'" in refused(copy)
    (copy / "latest_checkpointed_iteration.txt").write_text("7")
    (folder / ".metadata").write_bytes(b"")
    (folder / "common.pt").write_bytes((folder / "mp_rank_00_000" / FILE).read_bytes())
    assert ".metadata: not the metadata of a checkpoint" in refused(copy)
    state = torch.load(megatron / "gpt" / "iter_0000007" / "mp_rank_00" / FILE, weights_only=False)
    plain, file = state["model"], tmp_path / "other" / "mp_rank_00" / FILE
    file.parent.mkdir(parents=True)

    def message(settings=None, model=None, **facts):
        args = argparse.Namespace(**{**vars(state["args"]), **(settings or {})})
        torch.save({**state, "args": args, "model": plain | (model or {}), **facts}, file)
        return refused(tmp_path / "other")

    assert "has no weight for layers.0.ffn.router.weight" in message({"num_experts": 8})
    assert "rotary_percent is 0.5; a model with it cannot be loaded" in message({"rotary_percent": 0.5})
    assert (
        "position_embedding_type is 'yarn'; only learned_absolute or rope or none can be loaded"
        in message({"position_embedding_type": "yarn"})
    )
    assert "its args have no padded_vocab_size; it is no checkpoint of a GPT" in message(
        {"padded_vocab_size": None}
    )
    assert "its files hold 4 layers of 5" in message({"num_layers": 5})
    assert "checkpoint_version is 4; only 0 to 3 are known" in message(checkpoint_version=4)
    assert "holds 'lm_head.dense.weight', which no GPT of its settings has" in message(
        model={"lm_head.dense.weight": torch.ones(1)}
    )
    torch.save({**state, "model": {**plain, "decoder.final_layernorm.weight": torch.ones(5)}}, file)
    with pytest.raises(UserError, match=r"norm.weight has shape \(5,\), its settings say \(32,\)"):
        convert(ConvertConfig(source=str(tmp_path / "other"), output=str(tmp_path / "out"), tokenizer=SIXTY))


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "mamba2", "llama"])
@pytest.mark.parametrize("how", ["torch", "torch, 2 x 2"])
def test_mixtures_and_mamba_come_back_from_the_torch_format(kind, how, tmp_path):
    model = random_model(kind)
    write(model, tmp_path / "hf")
    sizes = {"target_tensor_parallel_size": 2, "target_pipeline_parallel_size": 2} if "2" in how else {}
    out = tmp_path / "megatron"
    convert(ConvertConfig(source=str(tmp_path / "hf"), output=str(out), format="torch", **sizes))
    assert_near(our_logits(open_checkpoint(out).load_model()), their_logits(model))
    if kind == "mamba2" and how == "torch":  # megatron-core's MambaMixer has the parts of mamba_ssm's
        state = torch.load(out / "release" / "mp_rank_00" / FILE, weights_only=False)["model"]
        theirs = model.state_dict()["backbone.layers.0.mixer.in_proj.weight"]
        assert torch.equal(state["decoder.layers.0.mixer.in_proj.weight"], theirs)
        assert "decoder.final_norm.weight" in state
