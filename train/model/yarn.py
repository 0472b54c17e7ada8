"""YaRN's factors of rotations and scores (Peng et al. 2023), and Megatron-LM's flags of them. No torch."""

from __future__ import annotations

import math
from typing import Any

# what megatron-core takes for multi-latent attention, where the arguments of its command do not say it
MEGATRON_LENGTH, MEGATRON_BETA_FAST, MEGATRON_BETA_SLOW = 4096, 32, 1


def yarn_attention_factor(scaling: dict) -> float:
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    factor = scaling["factor"]
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return yarn_mscale(factor, scaling["mscale"]) / yarn_mscale(factor, scaling["mscale_all_dim"])
    return yarn_mscale(factor, 1.0)


def yarn_mscale(factor: float, scale: float) -> float:
    """How much sharper attention becomes where positions are divided by a factor."""
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def latent_scaling(
    kind: str, factor: float, mscale: float, mscale_all_dim: float, channels: int, more: dict[str, Any]
) -> dict[str, Any]:
    """rope_scaling, and softmax_scale where it is needed, of Megatron-LM's multi-latent attention.

    kind: rope or yarn. channels: of a head's queries. more: original_max_position_embeddings and betas.
    Megatron-LM's attention factor is that of mscale over that of mscale_all_dim, where Hugging Face's, which
    rope_scaling follows, is that of 1 if one of them is 0. rope has only the factor of the scores.
    """
    if kind == "rope":
        sharper = yarn_mscale(factor, mscale_all_dim)
        scale = {"softmax_scale": channels**-0.5 * sharper**2} if sharper != 1 else {}
        return {"rope_scaling": None, **scale}
    if factor == 1:
        return {"rope_scaling": None}
    scaling = {"rope_type": "yarn", "factor": factor, **more}
    if mscale_all_dim:
        scaling["mscale_all_dim"] = mscale_all_dim
    if mscale and mscale_all_dim:
        scaling["mscale"] = mscale
    else:
        attention_factor = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
        if attention_factor != yarn_mscale(factor, 1.0):
            scaling["attention_factor"] = attention_factor
    return {"rope_scaling": scaling}


def megatron_mscales(scaling: dict[str, Any]) -> tuple[float, float] | None:
    """(mscale, mscale_all_dim) of Megatron-LM for a rope_scaling; None if its flags cannot say it."""
    fixed = {
        "rope_type": "yarn",
        "original_max_position_embeddings": MEGATRON_LENGTH,
        "beta_fast": MEGATRON_BETA_FAST,
        "beta_slow": MEGATRON_BETA_SLOW,
        "truncate": True,
    }
    if any(scaling.get(name) not in (None, value) for name, value in fixed.items()):
        return None
    factor, attention_factor = scaling["factor"], yarn_attention_factor(scaling)
    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim") or 0.0
    if scaling.get("attention_factor") is None:
        if mscale and all_dim:
            return mscale, all_dim
        if not all_dim:
            return 1.0, 0.0
    if factor <= 1:
        return (1.0, all_dim) if attention_factor == 1 else None
    found = (attention_factor * yarn_mscale(factor, all_dim) - 1) / (0.1 * math.log(factor))
    return (found, all_dim) if found >= 0 else None
