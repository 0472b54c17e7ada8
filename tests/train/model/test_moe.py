import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
import transformers

from mt.core.config import UserError
from mt.train.compile import configure_compiler
from mt.train.model import moe
from mt.train.model.block import activate
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.gpt import GPT
from mt.train.model.layers import initialize
from mt.train.model.moe import (
    MoE,
    balance,
    balancing_loss,
    choose,
    dispatch,
    grouped_linear,
    permute,
    set_loss_scale,
    unpermute,
    within_capacity,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def shape(**settings) -> ModelConfig:
    base = {
        "num_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_experts": 4,
        "activation": "swiglu",
        "moe_ffn_hidden_size": 24,
        "init_method_std": 0.3,
    }
    return resolve(ModelConfig(**{**base, **settings}), vocab_size=61, seq_length=24)


def mixture(dtype=torch.float64, **settings) -> MoE:
    module = MoE(shape(**settings))
    initialize(module, seed=0)
    return module.to(dtype)


def randn(*size, dtype=torch.float64, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mixture_by_loop(module: MoE, x, kept=None):
    """A mixture as a loop over tokens and their experts, in plain torch."""
    tokens, w = x.flatten(0, -2), dict(module.named_parameters())
    out = []
    for n, token in enumerate(tokens):
        logits = w["router.weight"] @ token
        top = logits.topk(module.router.topk)
        y = torch.zeros_like(token)
        for j, (expert, weight) in enumerate(zip(top.indices.tolist(), top.values.softmax(0))):
            if kept is not None and not kept[n, j]:
                continue
            inner = activate(
                w["experts.gate" if "experts.gate" in w else "experts.up"][expert] @ token,
                module.experts.activation,
            )
            if "experts.gate" in w:
                inner = inner * (w["experts.up"][expert] @ token)
            y = y + weight * (w["experts.down"][expert] @ inner)
        if module.shared is not None:
            inner = F.silu(w["shared.gate.weight"] @ token) * (w["shared.up.weight"] @ token)
            y = y + (w["shared.down.weight"] @ inner) * (w["shared_gate.weight"] @ token).sigmoid()
        out.append(y)
    return torch.stack(out).view_as(x)


def assert_same_with_gradients(module, x, ours, theirs, tolerance):
    weights = [p for p in module.parameters() if p.requires_grad]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    target = randn(*ours.shape, seed=9).to(ours.dtype)
    wanted = torch.autograd.grad((theirs * target).sum(), [x, *weights])
    found = torch.autograd.grad((ours * target).sum(), [x, *weights])
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "gelu", "moe_router_topk": 3},
        {"moe_shared_expert_intermediate_size": 8, "moe_shared_expert_gate": True},
    ],
    ids=["swiglu", "gelu", "shared expert"],
)
def test_a_mixture_equals_a_loop_over_tokens_and_their_experts(settings):
    module, x = mixture(**settings), randn(2, 9, 16).requires_grad_()
    assert_same_with_gradients(module, x, module(x), mixture_by_loop(module, x), 1e-12)


@pytest.mark.parametrize("policy", ["probs", "position"])
def test_an_expert_drops_tokens_beyond_its_capacity(policy):
    module, x = (
        mixture(moe_expert_capacity_factor=0.75, moe_token_drop_policy=policy),
        randn(2, 9, 16).requires_grad_(),
    )
    experts, weights = module.router(x.flatten(0, 1))
    kept = torch.zeros(experts.shape, dtype=torch.bool)
    for expert in range(4):
        rows, places = torch.where(experts == expert)
        order = (
            sorted(range(len(rows)), key=lambda i: -weights[rows[i], places[i]])
            if policy == "probs"
            else range(len(rows))
        )
        for i in list(order)[:7]:  # 18 tokens x 2 / 4 experts x 0.75, rounded up
            kept[rows[i], places[i]] = True
    assert not kept.all()
    assert_same_with_gradients(module, x, module(x), mixture_by_loop(module, x, kept), 1e-12)


def test_no_token_is_dropped_outside_training():
    module, x = mixture(moe_expert_capacity_factor=0.25).eval(), randn(2, 9, 16)
    torch.testing.assert_close(module(x), mixture_by_loop(module, x))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"score_function": "softmax"}, {}),
        ({"score_function": "softmax", "pre_softmax": True}, {"use_pre_softmax": True}),
        ({"score_function": "sigmoid"}, {"score_function": "sigmoid"}),
        (
            {"score_function": "sigmoid", "expert_bias": randn(6, dtype=torch.float32)},
            {"score_function": "sigmoid", "expert_bias": randn(6, dtype=torch.float32)},
        ),
    ],
    ids=["softmax", "pre-softmax", "sigmoid", "expert bias"],
)
def test_tokens_are_routed_and_dropped_as_in_megatron(ours, theirs):
    utils = pytest.importorskip(
        "megatron.core.transformer.moe.moe_utils", reason="megatron-core is the oracle"
    )
    logits = randn(40, 6, dtype=torch.float32)
    experts, weights = choose(logits, 2, **ours)
    probabilities, chosen = utils.topk_routing_with_score_function(logits, 2, **theirs)
    torch.testing.assert_close(torch.zeros(40, 6).scatter(1, experts, weights), probabilities)
    assert torch.equal(torch.zeros(40, 6).scatter(1, experts, 1).bool(), chosen)
    kept = within_capacity(experts, weights, 6, 0.8, "probs")
    final, _ = utils.apply_router_token_dropping(probabilities, chosen, 2, 0.8, "probs")
    torch.testing.assert_close(torch.zeros(40, 6).scatter(1, experts, weights * kept), final)
    # rows are sorted by expert, then by token
    tokens, sent = randn(40, 3, dtype=torch.float32), dispatch(experts, 6, kept)
    rows, _, places = utils.permute(tokens, final > 0)
    assert torch.equal(permute(tokens, sent), rows)
    torch.testing.assert_close(
        unpermute(rows, weights, sent),
        utils.unpermute(rows, places, tokens.shape, probs=final, routing_map=final > 0),
    )


def test_router_losses_are_megatrons_times_the_number_of_tokens():
    utils = pytest.importorskip(
        "megatron.core.transformer.moe.moe_utils", reason="megatron-core is the oracle"
    )
    logits = randn(40, 6, dtype=torch.float32)
    experts, _ = choose(logits, 2, score_function="softmax")
    counts = torch.bincount(experts.flatten(), minlength=6)
    theirs = utils.switch_load_balancing_loss_func(
        logits.softmax(-1), counts, total_num_tokens=40, topk=2, num_experts=6, moe_aux_loss_coeff=1.0
    )
    torch.testing.assert_close(balancing_loss(logits.softmax(-1), counts), 40 * theirs)
    router = mixture(torch.float32, num_experts=6, moe_z_loss_coeff=0.5).router
    torch.testing.assert_close(router._auxiliary_loss(logits, experts), 40 * utils.z_loss_func(logits, 0.5))


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
def test_groups_and_scaling_are_those_of_megatron(score_function):
    utils = pytest.importorskip(
        "megatron.core.transformer.moe.moe_utils", reason="megatron-core is the oracle"
    )
    logits, pre = randn(50, 12, dtype=torch.float32), score_function == "softmax"
    experts, weights = choose(
        logits, 4, score_function=score_function, pre_softmax=pre, num_groups=4, group_topk=2
    )
    theirs, _ = utils.topk_routing_with_score_function(
        logits, 4, use_pre_softmax=pre, num_groups=4, group_topk=2, scaling_factor=2.5,
        score_function=score_function,
    )  # fmt: skip
    torch.testing.assert_close(torch.zeros(50, 12).scatter(1, experts, 2.5 * weights), theirs)
    router = mixture(torch.float32, num_experts=12, moe_router_topk=4, moe_router_num_groups=4,
                     moe_router_group_topk=2, moe_router_topk_scaling_factor=2.5, moe_router_pre_softmax=pre,
                     moe_router_score_function=score_function).router  # fmt: skip
    tokens = randn(50, 16, dtype=torch.float32)
    ours, own = (
        router(tokens),
        choose(
            tokens @ router.weight.T,
            4,
            score_function=score_function,
            pre_softmax=pre,
            num_groups=4,
            group_topk=2,
        ),
    )
    assert torch.equal(ours[0], own[0])
    torch.testing.assert_close(ours[1], 2.5 * own[1])


def test_sinkhorn_is_megatrons_and_only_for_training():
    utils = pytest.importorskip(
        "megatron.core.transformer.moe.moe_utils", reason="megatron-core is the oracle"
    )
    logits = randn(40, 6, dtype=torch.float32) * 3
    torch.testing.assert_close(moe.sinkhorn(logits), utils.sinkhorn(logits))
    experts, weights = choose(logits, 2, score_function="softmax", pre_softmax=True, balanced=True)
    assert torch.equal(experts, utils.sinkhorn(logits).topk(2).indices)
    torch.testing.assert_close(weights, logits.softmax(-1).gather(1, experts))
    loads = torch.bincount(experts.flatten(), minlength=6)
    plain = torch.bincount(logits.topk(2).indices.flatten(), minlength=6)
    assert loads.max() - loads.min() < plain.max() - plain.min()
    one = mixture(moe_router_load_balancing_type="sinkhorn", moe_router_pre_softmax=True)
    without = mixture(moe_router_pre_softmax=True)
    x = randn(2, 9, 16)
    assert torch.equal(one.eval()(x), without.eval()(x))
    assert not torch.equal(one.train()(x), without(x))


def test_a_loss_of_each_sequence_is_megatrons():
    utils = pytest.importorskip(
        "megatron.core.transformer.moe.moe_utils", reason="megatron-core is the oracle"
    )
    logits = randn(3, 20, 6, dtype=torch.float32)  # 3 sequences
    experts = logits.topk(2).indices
    theirs = 0.0
    for own, chosen in zip(logits, experts):
        counts = torch.bincount(chosen.flatten(), minlength=6)
        theirs += utils.switch_load_balancing_loss_func(
            own.softmax(-1), counts, total_num_tokens=20, topk=2, num_experts=6, moe_aux_loss_coeff=0.3
        )
    router = mixture(
        torch.float32, num_experts=6, moe_aux_loss_coeff=0.3, moe_router_load_balancing_type="seq_aux_loss"
    ).router
    ours = router._auxiliary_loss(logits.flatten(0, 1), experts.flatten(0, 1), 3)
    torch.testing.assert_close(ours, 60 * theirs / 3)  # x the tokens, mean over the sequences


def test_a_global_loss_counts_the_step_so_far_as_in_megatron():
    utils = pytest.importorskip(
        "megatron.core.transformer.moe.moe_utils", reason="megatron-core is the oracle"
    )
    module = mixture(
        torch.float32, num_experts=6, moe_aux_loss_coeff=0.3, moe_router_load_balancing_type="global_aux_loss"
    )
    router, tracked = module.router, torch.zeros(6)
    for step in range(2):
        tracked.zero_()
        for index in range(3):  # micro-batches
            logits = randn(40, 6, dtype=torch.float32, seed=3 * step + index)
            experts = logits.topk(2).indices
            tracked += torch.bincount(experts.flatten(), minlength=6)
            theirs = utils.switch_load_balancing_loss_func(
                logits.softmax(-1), tracked / (index + 1), total_num_tokens=40, topk=2, num_experts=6,
                moe_aux_loss_coeff=0.3,
            )  # fmt: skip
            torch.testing.assert_close(router._auxiliary_loss(logits, experts), 40 * theirs)
        balance(module)


def test_what_balancing_cannot_have_is_refused():
    for wrong, words in (
        ({"moe_router_load_balancing_type": "sinkhorn"}, "needs --moe-router-score-function sigmoid"),
        ({"moe_router_load_balancing_type": "none", "moe_aux_loss_coeff": 0.1}, "none has no loss"),
        ({"moe_router_num_groups": 2}, "belong together"),
        ({"moe_router_num_groups": 3, "moe_router_group_topk": 1}, "does not divide model.num_experts = 4"),
        ({"moe_router_num_groups": 2, "moe_router_group_topk": 3}, "must be at most"),
        ({"moe_router_group_score_topk": 1}, "moe_router_group_score_topk = 1 counts experts of one of"),
        (
            {"moe_router_num_groups": 2, "moe_router_group_topk": 1, "moe_router_group_score_topk": 3},
            "use a number from 1 to those in a group",
        ),
    ):
        with pytest.raises(UserError, match=words):
            shape(**wrong)


LOSSES = {"moe_aux_loss_coeff": 0.1, "moe_z_loss_coeff": 0.01}


@pytest.mark.parametrize(
    "scores",
    [{}, {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True}],
    ids=["softmax", "sigmoid"],
)
def test_gradients_are_those_of_the_models_loss_plus_the_router_losses(scores):
    module, plain, x = mixture(**scores, **LOSSES), mixture(**scores), randn(2, 9, 16)
    for router in (module.router, plain.router):
        if router.expert_bias is not None:
            router.expert_bias.copy_(randn(4))
    set_loss_scale(module, 0.25)
    y = module(x)
    assert torch.equal(y, plain(x))
    y.square().sum().mul(0.25).backward()
    logits = x.flatten(0, 1) @ plain.router.weight.T
    scored = logits.softmax(-1) if not scores else logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True)
    share = F.one_hot(scored.topk(2).indices, 4).double().mean((0, 1))
    auxiliary = 0.1 * 4 * (share * scored.mean(0)).sum() + 0.01 * logits.logsumexp(-1).square().mean()
    (0.25 * (plain(x).square().sum() + 18 * auxiliary)).backward()
    for ours, theirs in zip(module.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_gradients_of_the_parts_of_a_micro_batch_sum_to_its_gradient():
    whole, x = mixture(**LOSSES), randn(1, 12, 16)
    experts, weights = whole.router(x[0])
    weights.square().sum().backward()
    parts = copy.deepcopy(whole)
    parts.zero_grad()
    parts.router.sum_counts = lambda _: torch.bincount(experts.flatten(), minlength=4)
    for part in (x[0, :5], x[0, 5:]):
        parts.router(part)[1].square().sum().backward()
    torch.testing.assert_close(parts.router.weight.grad, whole.router.weight.grad)


def test_the_expert_bias_follows_the_loads_of_training_only():
    module = mixture(
        moe_router_score_function="sigmoid",
        moe_router_enable_expert_bias=True,
        moe_router_bias_update_rate=0.5,
    )
    model = torch.nn.ModuleDict({"ffn": module})
    x = randn(2, 9, 16)
    module.eval()(x)
    assert (balance(model)["ffn"] == 0).all()
    module.train()(x[:1])
    module(x[1:])
    experts, _ = module.router(x.flatten(0, 1))
    counts = torch.bincount(experts.flatten(), minlength=4)
    # loads count the two micro-batches and the whole batch, which has the same shares
    shares = balance(model, total=lambda loads: loads)["ffn"]
    torch.testing.assert_close(shares, counts / counts.sum())
    assert torch.equal(module.router.expert_bias, 0.5 * torch.sign(counts.double().mean() - counts))
    assert (module.router.loads == 0).all()
    assert "router.expert_bias" in module.state_dict()
    assert "router.loads" not in module.state_dict()


def test_the_expert_bias_changes_the_choice_of_experts_but_not_their_weights():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    experts, weights = choose(logits, 2, score_function="sigmoid", expert_bias=torch.tensor([0.0, 0.0, 5.0]))
    assert experts.tolist() == [[2, 0]]
    scores = torch.tensor([0.0, 2.0]).sigmoid()
    torch.testing.assert_close(weights[0], scores / scores.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [16, 9])  # rows that are a multiple of 16 bytes, and rows that are not
def test_the_grouped_product_equals_a_loop_over_experts(dtype, size):
    counts = torch.tensor([3, 0, 5, 2])
    x, weight = (
        randn(10, size).to(dtype).requires_grad_(),
        randn(4, 8, size, seed=1).to(dtype).requires_grad_(),
    )
    y = grouped_linear(x, weight, counts)
    expected = torch.cat([part @ own.T for part, own in zip(x.split(counts.tolist()), weight)])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-13}[dtype]
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    gradient = randn(10, 8, seed=2).to(dtype)
    ours, theirs = (torch.autograd.grad(out, (x, weight), gradient) for out in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_experts_without_rows_give_no_rows():
    module = mixture(torch.float32)
    assert module.experts(torch.zeros(0, 16), torch.zeros(4, dtype=torch.int64)).shape == (0, 16)


def test_autocast_computes_experts_in_bfloat16_and_routes_in_float32():
    module, x = mixture(torch.float32), randn(2, 9, 16, dtype=torch.float32)
    dtypes = []
    module.experts.register_forward_hook(lambda _, inputs, output: dtypes.append(output.dtype))
    exact = module(x)
    experts, weights = module.router(x.flatten(0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(x)
        again = module.router(x.flatten(0, 1))
    assert dtypes == [torch.float32, torch.bfloat16]
    assert torch.equal(again[0], experts)
    assert torch.equal(again[1], weights)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)


def test_recomputation_changes_no_bit_of_gradients_and_no_load():
    moe._probe.cache_clear()  # its computation must not be part of the recomputed one
    plain = mixture(torch.float32, moe_expert_capacity_factor=1.0, **LOSSES)
    again, x = copy.deepcopy(plain), randn(2, 9, 16, dtype=torch.float32)
    torch.utils.checkpoint.checkpoint(
        again, x.requires_grad_(), use_reentrant=False
    ).square().sum().backward()
    plain(x).square().sum().backward()
    for ours, theirs in zip(again.parameters(), plain.parameters()):
        assert torch.equal(ours.grad, theirs.grad)
    shares = [balance(torch.nn.ModuleDict({"ffn": m}))["ffn"] for m in (plain, again)]
    assert torch.equal(*shares)


def test_a_compiled_mixture_without_dropping_is_one_graph():
    configure_compiler()
    module, x = mixture(torch.bfloat16, **LOSSES), randn(2, 9, 16).bfloat16()
    compiled = torch.compile(copy.deepcopy(module), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))


@pytest.mark.slow
def test_a_compiled_router_has_the_same_gradients():
    configure_compiler()
    # With these sizes, torch 2.13 lost the gradient when the router gathered its weights.
    router, x = (
        mixture(torch.float32, hidden_size=32, **LOSSES).router,
        randn(20, 32, dtype=torch.float32).requires_grad_(),
    )
    target = randn(20, 2, dtype=torch.float32, seed=1)

    def model(x):
        return (router(x)[1] * target).sum()

    ours, theirs = (
        torch.autograd.grad(function(x), (router.weight, x)) for function in (torch.compile(model), model)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def load(ours: GPT, theirs, gate_name: str) -> None:
    """Loads the weights of a mixture of transformers into ours (no shared experts, 4 heads, 2 groups)."""
    w = {k: v.detach() for k, v in theirs.named_parameters()}
    state = {
        "embedding.weight": w["model.embed_tokens.weight"],
        "output.weight": w["lm_head.weight"],
        "norm.weight": w["model.norm.weight"],
    }
    names = {
        "input_layernorm.weight": "mixer_norm.weight",
        "post_attention_layernorm.weight": "ffn_norm.weight",
        "self_attn.o_proj.weight": "mixer.out.weight",
    }
    names |= {
        f"{gate_name}.gate.weight": "ffn.router.weight",
        f"{gate_name}.experts.down_proj": "ffn.experts.down",
    }
    for i in range(2):
        their, our = f"model.layers.{i}.", f"layers.{i}."
        state |= {our + mine: w[their + name] for name, mine in names.items()}
        parts = [w[f"{their}self_attn.{n}_proj.weight"].unflatten(0, (2, -1)) for n in "qkv"]
        state[f"{our}mixer.qkv.weight"] = torch.cat(parts, dim=1).flatten(0, 1)
        state[f"{our}ffn.experts.gate"], state[f"{our}ffn.experts.up"] = w[
            f"{their}{gate_name}.experts.gate_up_proj"
        ].chunk(2, dim=1)
    ours.load_state_dict(state)


def test_a_mixtral_gives_the_logits_and_gradients_of_transformers():
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=24,
        rms_norm_eps=1e-5,
        sliding_window=None,
        attn_implementation="eager",
        initializer_range=0.2,
        rope_theta=1e4,
    )
    theirs = transformers.MixtralForCausalLM(config)
    ours = GPT(
        resolve(
            ModelConfig(
                num_layers=2,
                hidden_size=32,
                num_attention_heads=4,
                num_query_groups=2,
                num_experts=4,
                ffn_hidden_size=48,
                activation="swiglu",
                normalization="RMSNorm",
                position_embedding_type="rope",
                add_bias_linear=False,
                untie_embeddings_and_output_weights=True,
                make_vocab_size_divisible_by=64,
            ),
            vocab_size=64,
            seq_length=24,
        )
    )
    load(ours, theirs, "mlp")
    tokens = torch.randint(0, 64, (3, 24), generator=torch.Generator().manual_seed(1))
    expected, logits = theirs(tokens).logits, ours.logits(ours(tokens))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    for out in (expected, logits):
        F.cross_entropy(out[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").backward()
    block, mine = theirs.model.layers[0].mlp, ours.layers[0].ffn
    gate, up = block.experts.gate_up_proj.grad.chunk(2, dim=1)
    pairs = [
        (mine.experts.gate, gate),
        (mine.experts.up, up),
        (mine.experts.down, block.experts.down_proj.grad),
        (mine.router.weight, block.gate.weight.grad),
    ]
    for weight, gradient in pairs:
        torch.testing.assert_close(
            weight.grad / gradient.abs().max(), gradient / gradient.abs().max(), rtol=1e-5, atol=1e-5
        )


def test_a_qwen2_block_with_its_gated_shared_expert_gives_the_output_of_transformers():
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

    config = transformers.Qwen2MoeConfig(
        hidden_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=8,
        norm_topk_prob=False,
    )
    theirs = Qwen2MoeSparseMoeBlock(config)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ours = mixture(
        torch.float32,
        moe_router_pre_softmax=True,
        moe_shared_expert_intermediate_size=8,
        moe_shared_expert_gate=True,
    )
    w = dict(theirs.named_parameters())
    gate, up = w["experts.gate_up_proj"].chunk(2, dim=1)
    shared = {f"shared.{n}.weight": w[f"shared_expert.{n}_proj.weight"] for n in ("gate", "up", "down")}
    ours.load_state_dict(
        {
            "router.weight": w["gate.weight"],
            "experts.gate": gate,
            "experts.up": up,
            "experts.down": w["experts.down_proj"],
            "shared_gate.weight": w["shared_expert_gate.weight"],
            **shared,
        }
    )
    x = randn(2, 9, 16, dtype=torch.float32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_initial_weights_of_experts_depend_on_names_and_have_the_spread_of_other_layers():
    ours, again = (mixture(torch.float32, num_experts=8, hidden_size=64) for _ in range(2))
    for a, b in zip(ours.parameters(), again.parameters()):
        assert torch.equal(a, b)
    assert ours.experts.up.std().item() == pytest.approx(0.3, rel=0.05)
    assert ours.experts.down.std().item() == pytest.approx(
        0.3 / 2, rel=0.05
    )  # two layers of two parts each: divided by sqrt(4)
    assert not torch.equal(ours.experts.up, ours.experts.gate)
    on_meta = (
        MoE(
            dataclasses.replace(
                shape(), moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True
            )
        )
        .to("meta")
        .to_empty(device="cpu")
    )
    initialize(on_meta, seed=0)
    assert on_meta.router.loss_scale == 1
    assert (on_meta.router.loads == 0).all()
    assert (on_meta.router.expert_bias == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_experts": 4, "moe_router_topk": 5},
            "moe_router_topk = 5 is more than model.num_experts = 4; send a token to fewer",
        ),
        ({"num_experts": 0}, "model.num_experts = 0 must be at least 1"),
        (
            {"moe_aux_loss_coeff": 0.1},
            "model.moe_aux_loss_coeff: there are no experts to set; give --num-experts too",
        ),
        ({"num_experts": 4, "moe_z_loss_coeff": -1.0}, "model.moe_z_loss_coeff = -1.0 must not be negative"),
        (
            {"num_experts": 4, "moe_router_topk": 1},
            "always 1 and teaches the router nothing; give --moe-router-pre-softmax",
        ),
        (
            {"num_experts": 4, "moe_router_enable_expert_bias": True},
            "give --moe-router-score-function sigmoid with it",
        ),
        (
            {"num_experts": 4, "moe_router_score_function": "sigmoid", "moe_router_pre_softmax": True},
            "moe_router_pre_softmax is for model.moe_router_score_function = softmax",
        ),
        (
            {"num_experts": 4, "moe_expert_capacity_factor": 0.0},
            "moe_expert_capacity_factor = 0.0 must be above 0",
        ),
        ({"num_experts": 4, "moe_token_drop_policy": "position"}, "needs --moe-expert-capacity-factor"),
        ({"num_experts": 4, "moe_shared_expert_gate": True}, "needs --moe-shared-expert-intermediate-size"),
        (
            {"num_experts": 4, "moe_layer_freq": "0"},
            r"moe_layer_freq = 0 must be a whole number from 1, or a list of 0 and 1",
        ),
        (
            {"num_experts": 4, "moe_layer_freq": "__import__('os')"},
            "must be a whole number from 1, or a list of 0 and 1",
        ),
        (
            {"num_experts": 4, "moe_layer_freq": "[2]*3"},
            "must be a whole number from 1, or a list of 0 and 1",
        ),
        (
            {"num_experts": 4, "num_layers": 4, "moe_layer_freq": "[0,1]*3"},
            "is a list of 6, but there are 4 layers",
        ),
        ({"num_experts": 4, "hybrid_override_pattern": "*-*-"}, "has no layer E"),
        ({"hybrid_override_pattern": "*E"}, "has layers E of experts; give --num-experts"),
        (
            {"num_experts": 4, "hybrid_override_pattern": "*E*-", "moe_layer_freq": "2"},
            "the E of model.hybrid_override_pattern say which",
        ),
        ({"num_experts": 4, "family": "bert"}, "model.num_experts is for model.family = gpt, not bert"),
    ],
)
def test_impossible_settings_of_a_mixture_are_refused(settings, message):
    with pytest.raises(UserError) as refused:
        ModelConfig(**settings)
    assert message in str(refused.value)
