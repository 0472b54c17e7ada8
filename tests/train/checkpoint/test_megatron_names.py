"""Names and cuts of Megatron-LM's tensors: the experts of several ranks are those of the whole model."""

import re

import pytest
import torch

from mt.tests.train.checkpoint.transformers_models import (
    assert_near,
    our_logits,
    random_model,
    their_logits,
    write,
)
from mt.train.checkpoint.commands import ConvertConfig, convert
from mt.train.checkpoint.open import open_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
FILE = "model_optim_rng.pt"


def test_the_experts_of_all_ranks_and_grouped_ones_are_joined(tmp_path):
    model = random_model("mixtral")
    write(model, tmp_path / "hf")
    convert(ConvertConfig(source=str(tmp_path / "hf"), output=str(tmp_path / "whole"), format="torch"))
    state = torch.load(tmp_path / "whole" / "release" / "mp_rank_00" / FILE, weights_only=False)
    count = state["args"].num_experts
    for kind in ("sequential", "te grouped", "grouped"):
        state["args"].expert_model_parallel_size = 2
        for rank in range(2):
            part = {}
            for name, tensor in state["model"].items():
                match = re.fullmatch(r"(.*\.experts)\.local_experts\.(\d+)\.(linear_fc[12])\.weight", name)
                if match is None:
                    part[name] = tensor
                    continue
                expert = int(match[2]) - rank * count // 2
                if not 0 <= expert < count // 2:
                    continue
                if kind == "sequential":
                    part[f"{match[1]}.local_experts.{expert}.{match[3]}.weight"] = tensor
                elif kind == "te grouped":
                    part[f"{match[1]}.{match[3]}.weight{expert}"] = tensor
                else:
                    key = f"{match[1]}.weight{match[3][-1]}"
                    part.setdefault(key, []).append(tensor.T)
            for name, experts in part.items():
                if isinstance(experts, list):  # (D, E x F), read as (E, D, F), and (E x F, D)
                    wide = experts[0].shape[0] if name.endswith("1") else experts[0].shape[1]
                    shape = (wide, -1) if name.endswith("1") else (-1, wide)
                    part[name] = torch.stack(experts).reshape(shape)
            folder = tmp_path / kind / f"mp_rank_00_{rank:03d}"
            folder.mkdir(parents=True)
            torch.save({**state, "model": part}, folder / FILE)
        assert_near(our_logits(open_checkpoint(tmp_path / kind).load_model()), their_logits(model))
