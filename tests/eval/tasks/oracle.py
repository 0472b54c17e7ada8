"""transformers on one sequence at a time: the oracle of LAMBADA and WikiText."""

import torch


def logprobs(gpt2, ids):
    """Log-probabilities of the next token after each prefix of ids, (len(ids) - 1, V)."""
    with torch.no_grad():
        return gpt2(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
