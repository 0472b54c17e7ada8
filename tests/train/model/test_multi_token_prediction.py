"""Multi-token prediction: losses and gradients of megatron-core's block; what evaluation leaves out."""

import os
import subprocess
import sys

import pytest
import torch

from mt.core.config import UserError
from mt.tests.train.model.small_models import LLAMA, gpt, random_tokens
from mt.train.checkpoint.open import open_checkpoint
from mt.train.model.attention import Documents
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.multi_token_prediction import next_tokens

pytestmark = pytest.mark.usefixtures("one_thread")

# A program that saves the weights of four models of megatron-core, and the gradients of a training step in
# the same format; batch.pt has the batch and the sums of the losses.
WRITER = """
import contextlib, sys, warnings
from argparse import Namespace
from pathlib import Path

warnings.filterwarnings("ignore")
import torch
import torch.nn.functional as F
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_mtp_block_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer import MLATransformerConfig, TransformerConfig, multi_latent_attention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

torch.cuda.current_device = lambda: torch.device("cpu")
CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()
# Their local attention takes other channels of values, but not the arguments that say so, and no packed
# sequences: it is given a mask of them.
make, attend = DotProductAttention.__init__, DotProductAttention.forward
DotProductAttention.__init__ = lambda self, *a, k_channels=0, v_channels=0, **k: make(self, *a, **k)
DotProductAttention.forward = lambda self, *a, packed_seq_params=None, **k: attend(self, *a, **k)
multi_latent_attention.HAVE_TE = False
moe_utils.te_general_gemm = None  # which only an import of transformer-engine defines
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel()
torch.set_num_threads(1)
LATENT = dict(
    multi_latent_attention=True, q_lora_rank=20, kv_lora_rank=12, qk_head_dim=6, qk_pos_emb_head_dim=4,
    v_head_dim=8, rope_type="rope",
)
MOE = dict(
    num_moe_experts=4, moe_ffn_hidden_size=24, moe_router_topk=2, moe_shared_expert_intermediate_size=16,
    moe_router_score_function="sigmoid", moe_token_dispatcher_type="allgather", moe_router_dtype="fp32",
)
CASES = {
    "gpt": (1, {}),
    "llama": (2, {}),
    "latents and experts": (1, {**LATENT, **MOE}),
    "packed": (2, {}),
}
for kind, (depths, changes) in CASES.items():
    llama, mla = kind not in ("gpt", "packed"), bool(changes)
    shape = dict(
        num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2 if llama and not mla else 4,
        ffn_hidden_size=48, add_bias_linear=not llama, mtp_num_layers=depths, mtp_loss_scaling_factor=0.3,
    )
    config = (MLATransformerConfig if mla else TransformerConfig)(
        **shape, **changes, use_cpu_initialization=True, normalization="RMSNorm" if llama else "LayerNorm",
        activation_func=F.silu if llama else F.gelu, gated_linear_unit=llama, hidden_dropout=0.0,
        attention_dropout=0.0, bias_activation_fusion=False, masked_softmax_fusion=False,
        gradient_accumulation_fusion=False, qk_layernorm=llama, calculate_per_token_loss=True,
    )
    spec = get_gpt_layer_local_spec(normalization=config.normalization, qk_layernorm=llama,
        multi_latent_attention=mla, num_experts=4 if mla else None)
    if kind == "packed":
        spec.submodules.self_attention.params["attn_mask_type"] = AttnMaskType.padding_causal
    model = GPTModel(
        config, spec, vocab_size=64, max_sequence_length=32,
        position_embedding_type="rope" if llama else "learned_absolute",
        share_embeddings_and_output_weights=not llama,
        mtp_block_spec=get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False),
    ).train()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    starts = [0, 5, 6, 16] if kind == "packed" else [0, 16]
    rows = 1 if kind == "packed" else 2
    text = torch.randint(64, (rows, 17))
    tokens, labels = text[:, :-1], text[:, 1:]
    loss_mask = (torch.rand(rows, 16) > 0.2).float()
    lengths = torch.tensor(starts).diff()
    ids = torch.arange(len(lengths)).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(rows, -1).contiguous()
    masked = (torch.ones(16, 16).triu(1) > 0) | (ids != ids[:, None])
    packed = None
    if kind == "packed":
        ends = torch.tensor(starts, dtype=torch.int32)
        packed = PackedSeqParams(qkv_format="sbhd", cu_seqlens_q=ends, cu_seqlens_kv=ends)
    losses = model(tokens, positions, masked[None, None], labels=labels, loss_mask=loss_mask,
        packed_seq_params=packed)
    loss = (losses * loss_mask).sum()
    loss.backward()
    args = Namespace(
        **shape, **changes, group_query_attention=True, kv_channels=8, seq_length=16,
        max_position_embeddings=32, padded_vocab_size=64, num_experts=4 if mla else None,
        position_embedding_type="rope" if llama else "learned_absolute", normalization=config.normalization,
        qk_layernorm=llama, swiglu=llama, bias_gelu_fusion=False, untie_embeddings_and_output_weights=llama,
    )
    weights = {n: t for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    gradients = {n: p.grad for n, p in model.named_parameters()}
    for name, tensors in (("weights", weights), ("gradients", {**weights, **gradients})):
        folder = Path(sys.argv[1]) / kind / name / "mp_rank_00"
        folder.mkdir(parents=True)
        state = {"args": args, "checkpoint_version": 3.0, "iteration": 7, "model": tensors}
        torch.save(state, folder / "model_optim_rng.pt")
    depths_losses = MTPLossLoggingHelper.tracker.pop("values")
    batch = dict(
        tokens=tokens, labels=labels, loss_mask=loss_mask, positions=positions, ids=ids, starts=starts,
        loss=loss.detach(), later=depths_losses,
    )
    torch.save(batch, Path(sys.argv[1]) / kind / "batch.pt")
"""


@pytest.fixture(scope="module")
def megatron(tmp_path_factory):
    """The folder of what WRITER writes, for each of its cases."""
    pytest.importorskip("megatron.core", reason="megatron-core is the oracle")
    folder = tmp_path_factory.mktemp("predictions")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt", "llama", "latents and experts", "packed"])
def test_losses_and_gradients_are_those_of_megatron(megatron, kind):
    source = open_checkpoint(megatron / kind / "weights")
    gradients = open_checkpoint(megatron / kind / "gradients")
    batch = torch.load(megatron / kind / "batch.pt")
    model = build_model(source.config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(source.read_weight(name, weight.shape))
        for module in model.modules():
            if hasattr(module, "loss_scale"):
                module.loss_scale.fill_(1.0)
    documents = None
    if kind == "packed":
        starts = torch.tensor(batch["starts"], dtype=torch.int32)
        documents = Documents(batch["ids"][None].int(), starts, int(starts.diff().max()))
    loss = model.train().loss(
        batch["tokens"],
        batch["labels"],
        batch["loss_mask"],
        positions=batch["positions"],
        documents=documents,
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), batch["loss"], rtol=1e-5, atol=0)
    sums, counts = model.mtp.take_sums().unbind(1)
    torch.testing.assert_close((sums / counts).float(), batch["later"], rtol=1e-5, atol=0)
    assert model.mtp.take_sums() is None
    largest = 0.0
    for name, weight in model.named_parameters():
        expected = gradients.read_weight(name, weight.shape)
        largest = max(largest, expected.abs().max().item())
        assert (weight.grad - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max()), name
    assert largest > 0.1


def test_the_loss_is_the_models_own_and_evaluation_runs_no_depth():
    tokens, mask = random_tokens(), torch.ones(3, 24)
    plain, model = gpt(**LLAMA), gpt(**LLAMA, mtp_num_layers=2)
    assert plain.loss(tokens, tokens, mask) == model.train().loss(tokens, tokens, mask)
    assert model.mtp.take_sums() is not None
    for depth in model.mtp.layers:
        depth.forward = None
    assert plain.eval().loss(tokens, tokens, mask) == model.eval().loss(tokens, tokens, mask)
    assert torch.equal(plain(tokens), model(tokens))
    assert model.mtp.take_sums() is None


def test_a_factor_of_zero_gives_the_gradients_of_a_model_without():
    tokens, mask = random_tokens(), torch.ones(3, 24)
    plain, model = gpt(), gpt(mtp_num_layers=1, mtp_loss_scaling_factor=0.0)
    for each in (plain, model):
        each.train().loss(tokens, tokens, mask).backward()
    found = dict(model.named_parameters())
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(found[name].grad, weight.grad)


def test_documents_learn_nothing_from_each_other():
    """Gradients of two documents in one sample are the sums of those of each alone."""
    settings = {"mtp_num_layers": 2, "position_embedding_type": "rope"}
    tokens, labels = random_tokens(1, 24), random_tokens(2, 24)[1:]
    together, apart = gpt(**settings).train(), gpt(**settings).train()
    starts = torch.tensor([0, 9, 24], dtype=torch.int32)
    ids = torch.arange(2, dtype=torch.int32).repeat_interleave(starts.diff())[None]
    positions = torch.cat([torch.arange(9), torch.arange(15)])[None]
    mask = torch.ones(1, 24)
    documents = Documents(ids, starts, 15)
    together.loss(tokens, labels, mask, positions=positions, documents=documents).backward()
    for part in (slice(0, 9), slice(9, 24)):
        apart.loss(tokens[:, part], labels[:, part], mask[:, part]).backward()
    for one, other in zip(together.parameters(), apart.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_tokens_move_to_the_left_within_their_documents():
    x = torch.arange(1, 9).view(2, 4)
    assert next_tokens(x).tolist() == [[2, 3, 4, 0], [6, 7, 8, 0]]
    ids = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]], dtype=torch.int32)
    documents = Documents(ids, torch.tensor([0, 2, 4, 5, 8], dtype=torch.int32), 3)
    assert next_tokens(x, documents).tolist() == [[2, 0, 4, 0], [0, 7, 8, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mtp_num_layers": -1}, "model.mtp_num_layers = -1 must not be negative"),
        ({"mtp_loss_scaling_factor": 0.3}, "0.3 is of multi-token prediction; give --mtp-num-layers too"),
        ({"mtp_num_layers": 1, "mtp_loss_scaling_factor": -0.1}, "-0.1 must not be negative"),
        ({"mtp_num_layers": 1, "hybrid_override_pattern": "*-"}, "hybrid_override_pattern says no layer"),
        ({"mtp_num_layers": 1, "retro_add_retriever": True}, "its layers read no neighbours"),
        ({"mtp_num_layers": 1, "family": "bert"}, "model.mtp_num_layers is for model.family = gpt"),
        (
            {"mtp_num_layers": 1, "window_size": 4, "window_attn_skip_freq": "2"},
            "does not say whether its layers have the window",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError) as found:
        resolve(ModelConfig(**settings), vocab_size=61, seq_length=24)
    assert message in str(found.value)
