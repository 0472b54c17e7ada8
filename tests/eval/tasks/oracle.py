"""transformers on one sequence at a time: the oracle of LAMBADA and WikiText."""

import torch


def logprobs(gpt2, ids):
    """(len(ids) - 1, V) log-probabilities of what follows each prefix."""
    with torch.no_grad():
        return gpt2(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
