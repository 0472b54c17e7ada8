"""A program of megatron-core: two ranks on processors save and load models in its torch_dist format.

python megatron_ranks.py RANK FOLDER save            writes FOLDER/NAME and FOLDER/NAME.pt, its whole state
python megatron_ranks.py RANK FOLDER load SOURCE     reads SOURCE/NAME at its layout, and compares
"""

import contextlib
import sys
from argparse import Namespace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_layer_local_spec,
    get_gpt_mtp_block_spec,
)
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer import MLATransformerConfig, TransformerConfig, multi_latent_attention
from megatron.core.transformer.dot_product_attention import DotProductAttention

MOE = {
    "num_moe_experts": 4,
    "moe_ffn_hidden_size": 24,
    "moe_router_topk": 2,
    "moe_shared_expert_intermediate_size": 16,
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "moe_token_dispatcher_type": "allgather",
}
LATENT = {
    "multi_latent_attention": True,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_head_dim": 6,
    "qk_pos_emb_head_dim": 4,
    "v_head_dim": 8,
    "num_query_groups": 4,
}
# name -> (changes of the model, sizes of the groups, metadata of the sharded state)
CASES = {
    "tensor": ({}, {"tensor_model_parallel_size": 2}, None),
    "pipeline": ({}, {"pipeline_model_parallel_size": 2}, None),
    "singletons": ({}, {"tensor_model_parallel_size": 2}, {"singleton_local_shards": True}),
    "experts": (MOE, {"expert_model_parallel_size": 2}, None),
    "expert singletons": (MOE, {"expert_model_parallel_size": 2}, {"singleton_local_shards": True}),
    "some experts": (
        {**MOE, "moe_layer_freq": [0, 1]},
        {"pipeline_model_parallel_size": 2},
        None,
    ),
    "latents": (LATENT, {"tensor_model_parallel_size": 2}, None),
    "latents of keys": (
        {**LATENT, **MOE, "q_lora_rank": None},
        {"pipeline_model_parallel_size": 2},
        {"singleton_local_shards": True},
    ),
    "later tokens": ({"mtp_num_layers": 2}, {"pipeline_model_parallel_size": 2}, None),
    "later tokens of latents and experts": (
        {**LATENT, **MOE, "mtp_num_layers": 1, "mtp_loss_scaling_factor": 0.3},
        {"tensor_model_parallel_size": 2},
        None,
    ),
}


def build(changes, sizes):
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(**sizes)
    latent = "multi_latent_attention" in changes
    config = (MLATransformerConfig if latent else TransformerConfig)(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        ffn_hidden_size=48,
        add_bias_linear=False,
        use_cpu_initialization=True,
        normalization="RMSNorm",
        activation_func=F.silu,
        gated_linear_unit=True,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        qk_layernorm=True,
        pipeline_dtype=torch.float32,
        **{"num_query_groups": 2, **changes},
        **sizes,
    )
    experts = changes.get("num_moe_experts")
    if isinstance(changes.get("moe_layer_freq"), list):
        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")
    else:
        spec = get_gpt_layer_local_spec(
            num_experts=experts, normalization="RMSNorm", qk_layernorm=True, multi_latent_attention=latent
        )
    predicts = bool(changes.get("mtp_num_layers"))
    return GPTModel(
        config,
        spec,
        mtp_block_spec=get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False)
        if predicts
        else None,
        vocab_size=64,
        max_sequence_length=32,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    )


def sharded(model, metadata):
    # it adds its groups to it
    return model.sharded_state_dict(metadata=dict(metadata or {"singleton_local_shards": False}))


def load(model, folder, metadata):
    state = {"model": sharded(model, metadata)}
    return dist_checkpointing.load(state, str(folder))["model"]


def main(rank, folder, what, source=None):
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda: None
    torch.Tensor.cuda = lambda self, *a, **k: self
    CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()
    multi_latent_attention.HAVE_TE = False
    make = DotProductAttention.__init__
    # their local attention takes other channels of values, but not the arguments that say so
    DotProductAttention.__init__ = lambda self, *a, k_channels=0, v_channels=0, **k: make(self, *a, **k)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{what}.rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for name, (changes, sizes, metadata) in CASES.items():
        model = build(changes, sizes)
        place = folder / name / "iter_0000007"
        if what == "save":
            torch.manual_seed(rank)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter)
            place.mkdir(parents=True, exist_ok=True)
            args = Namespace(
                num_layers=2, hidden_size=32, num_attention_heads=4, group_query_attention=True,
                ffn_hidden_size=48, add_bias_linear=False, normalization="RMSNorm",
                swiglu=True, qk_layernorm=True, position_embedding_type="rope", padded_vocab_size=64,
                max_position_embeddings=32, seq_length=32, untie_embeddings_and_output_weights=True,
                **{"num_query_groups": 2} | sizes
                | {("num_experts" if n == "num_moe_experts" else n): v for n, v in changes.items()},
            )  # fmt: skip
            state = {"model": sharded(model, metadata), "args": args, "iteration": 7}
            dist.barrier()
            dist_checkpointing.save(state, str(place))
            whole = build(changes, {})
            state = load(whole, place, metadata)
            if rank == 0:
                (folder / name / "latest_checkpointed_iteration.txt").write_text("7")
                torch.save(state, folder / f"{name}.pt")
        elif (source / name).exists():
            (written,) = (source / name).glob("iter_*")
            mine = load(model, written, None)
            expected = load(build(changes, sizes), place, metadata)
            assert mine.keys() == expected.keys()
            for key, tensor in expected.items():
                if isinstance(tensor, torch.Tensor):
                    assert torch.equal(mine[key], tensor), (name, key)
        dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]) if len(sys.argv) > 4 else None)
