"""A small run, and checkpoints of megatron-core, for the tests of checkpoints."""

import os
import subprocess
import sys

import pytest

from mt.core.config import build

# A program that builds three models of megatron-core on a CPU, without training. It saves them in
# Megatron-LM's format, and their logits.
WRITER = """
import contextlib, random, signal, sys, warnings
from argparse import Namespace
from pathlib import Path

warnings.filterwarnings("ignore")
import numpy as np
import torch
import torch.nn.functional as F
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer import MLATransformerConfig, TransformerConfig, multi_latent_attention
from megatron.core.transformer.enums import AttnBackend

torch.cuda.current_device = lambda: torch.device("cpu")
CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()
# Their local attention takes other channels of values, but not the arguments that say so.
make = DotProductAttention.__init__
DotProductAttention.__init__ = lambda self, *a, k_channels=0, v_channels=0, **k: make(self, *a, **k)
multi_latent_attention.HAVE_TE = False
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel()
torch.set_num_threads(1)
LATENT = dict(
    multi_latent_attention=True, q_lora_rank=20, kv_lora_rank=12, qk_head_dim=6, qk_pos_emb_head_dim=4,
    v_head_dim=8, rotary_scaling_factor=40.0, mscale=0.7, mscale_all_dim=0.9,
)
for kind in ("gpt", "llama", "mla", "pairs"):
    mla = kind == "mla"
    grouped = kind in ("llama", "pairs")
    llama = grouped or mla
    shape = dict(
        num_layers=4,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=2 if grouped else 4,
        ffn_hidden_size=48,
        add_bias_linear=not llama,
    )
    config = (MLATransformerConfig if mla else TransformerConfig)(
        **({**LATENT, "rotary_base": 500} if mla else {}),
        **shape,
        use_cpu_initialization=True,
        rotary_interleaved=kind == "pairs",
        normalization="RMSNorm" if llama else "LayerNorm",
        activation_func=F.silu if llama else F.gelu,
        gated_linear_unit=llama,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=True,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        qk_layernorm=llama,
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(normalization=config.normalization, qk_layernorm=llama,
            multi_latent_attention=mla),
        vocab_size=64,
        max_sequence_length=32,
        rotary_base=500,
        position_embedding_type="rope" if llama else "learned_absolute",
        share_embeddings_and_output_weights=not llama,
    ).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    tokens = torch.arange(32).view(2, 16) * 7 % 60
    with torch.no_grad():
        logits = model(
            tokens, torch.arange(16).expand(2, -1), torch.ones(1, 1, 16, 16, dtype=torch.bool).triu(1)
        )
    args = Namespace(
        **shape,
        **(LATENT if mla else {}),
        group_query_attention=grouped,
        kv_channels=8,
        seq_length=24,
        max_position_embeddings=32,
        padded_vocab_size=64,
        make_vocab_size_divisible_by=64,
        position_embedding_type="rope" if llama else "learned_absolute",
        rotary_base=500,
        normalization=config.normalization,
        norm_epsilon=1e-5,
        qk_layernorm=llama,
        swiglu=llama,
        bias_gelu_fusion=True,
        untie_embeddings_and_output_weights=llama,
        num_experts=None,
        window_size=None,
        model_type=ModelType.encoder_or_decoder,
        attention_backend=AttnBackend.auto,
        exit_signal=signal.SIGTERM,
        params_dtype=torch.float32,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        rotary_percent=1.0,
        rotary_interleaved=kind == "pairs",
        data_path=["a", 0.5],
        save=Path("out"),
    )
    rng = [
        {
            "random_rng_state": random.getstate(),
            "np_rng_state": np.random.get_state(),
            "torch_rng_state": torch.get_rng_state(),
            "rng_tracker_states": {},
        }
    ]
    state = {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": 7,
        "model": model.state_dict(),
        "rng_state": rng,
        "optimizer": {"param_groups": [{"lr": 1.0}]},
    }
    folder = Path(sys.argv[1]) / kind
    (folder / "iter_0000007" / "mp_rank_00").mkdir(parents=True)
    torch.save(state, folder / "iter_0000007" / "mp_rank_00" / "model_optim_rng.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    torch.save({"tokens": tokens, "logits": logits}, folder / "logits.pt")
"""


@pytest.fixture(scope="session")
def gpt2_run(tmp_path_factory, tree):
    """A finished run of a model that Hugging Face also has. Its 60 tokens are padded to 128 rows."""
    folder = tmp_path_factory.mktemp("gpt2") / "run"
    settings = tree(folder, train_iters=3)
    settings["model"]["activation"] = "gelu_tanh"
    from mt.train.loop import TrainConfig, train

    train(build(TrainConfig, ("test", settings)))
    return folder


@pytest.fixture(scope="session")
def megatron(tmp_path_factory):
    """The folder of gpt/, llama/, mla/ and pairs/, checkpoints of megatron-core; logits.pt has tokens and
    their logits.
    """
    pytest.importorskip("megatron.core", reason="megatron-core is the oracle")
    folder = tmp_path_factory.mktemp("megatron")
    # megatron-core would compile its activations, which takes 20 s of a CPU
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    return folder
