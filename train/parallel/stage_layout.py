"""Reads --pipeline-model-parallel-layout, Megatron-LM's text of the blocks of every pipeline stage."""

from __future__ import annotations

import re

from ...core.config import shown

MOST_BLOCKS = 1 << 17  # in a layout of stages


def stage_lengths(layout: str, *, empty: bool = False, predictions: int | None = None) -> list[int]:
    """The numbers of blocks of stages, from Megatron-LM's text: E embedding, t block, L loss, | next stage.

    `t*3` is ttt, and `(tt|)*2` is tt|tt|. empty: whether a stage may have no block. predictions: of a command
    line of Megatron-LM, how many layers m of multi-token prediction there must be, after the last t. Raises
    ValueError, whose text continues the message.
    """
    text = layout.replace(",", "").replace(" ", "")
    for repeated in (r"\(([^()]*)\)\*([0-9]{1,9})", r"([^()*0-9])\*([0-9]{1,9})"):
        times = sum(len(part) * int(count) for part, count in re.findall(repeated, text))
        if times > MOST_BLOCKS:
            raise ValueError(f"is longer than {MOST_BLOCKS:,} letters")
        text = re.sub(repeated, lambda found: found[1] * int(found[2]), text)
    if (wrong := re.search(r"[^EtL|]" if predictions is None else r"[^EtmL|]", text)) is not None:
        raise ValueError(
            f"has {shown(wrong[0])}; write t for a block, | between stages, and t*3 or (tt|)*3 to repeat"
        )
    if not re.fullmatch(r"E?[t|]*[m|]*L?", text):
        raise ValueError("must begin with E, the embedding, and end with L, the loss, or have neither")
    if predictions is not None and text.count("m") != predictions:
        raise ValueError(
            f"has {text.count('m')} layers m of multi-token prediction, and --mtp-num-layers is {predictions}"
        )
    lengths = [stage.count("t") for stage in text.split("|")]
    if 0 in lengths and not empty:
        raise ValueError(f"has no block in stage {lengths.index(0) + 1}; every stage needs one")
    return lengths
