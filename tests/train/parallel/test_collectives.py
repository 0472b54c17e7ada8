"""Collectives and their gradients, compared with sums, concatenations and slices of all ranks' tensors."""

import pytest
import torch
import torch.nn.functional as F

from mt.tests.train.parallel.jobs import collective_and_gradient, vocab_parallel

RANKS = 2


def tensors(*shape: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(RANKS)]


def part(x: torch.Tensor, rank: int, dim: int) -> torch.Tensor:
    return x.chunk(RANKS, dim)[rank]


# name -> function of (the tensors of all ranks, a rank, a dimension): the result on that rank
FORWARD = {
    "copy_to": lambda xs, r, dim: xs[r],
    "reduce_from": lambda xs, r, dim: sum(xs),
    "gather_from": lambda xs, r, dim: torch.cat(xs, dim),
    "reduce_scatter_to": lambda xs, r, dim: part(sum(xs), r, dim),
    "scatter_to": lambda xs, r, dim: part(xs[r], r, dim),
}
BACKWARD = {
    "copy_to": FORWARD["reduce_from"],
    "reduce_from": FORWARD["copy_to"],
    "gather_from": FORWARD["reduce_scatter_to"],
    "reduce_scatter_to": FORWARD["gather_from"],
    "scatter_to": FORWARD["gather_from"],
}


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("name", FORWARD)
def test_a_collective_and_its_gradient_equal_those_computed_from_the_tensors_of_all_ranks(pool, name, dim):
    xs = tensors(4, 6, 2, seed=0)
    gradients = [torch.randn_like(FORWARD[name](xs, r, dim)) for r in range(RANKS)]
    arguments = () if name in ("copy_to", "reduce_from") else (dim,)
    for rank, (y, gradient) in enumerate(
        pool.run(collective_and_gradient, RANKS, name, xs, gradients, *arguments)
    ):
        torch.testing.assert_close(y, FORWARD[name](xs, rank, dim))
        torch.testing.assert_close(gradient, BACKWARD[name](gradients, rank, dim))


def test_the_gradient_of_a_gather_is_split_if_all_ranks_use_its_result_in_the_same_way(pool):
    xs = tensors(4, 3, seed=1)
    gradients = tensors(4, 6, seed=2)
    for rank, (y, gradient) in enumerate(
        pool.run(collective_and_gradient, RANKS, "gather_from", xs, gradients, 1, "split")
    ):
        assert torch.equal(y, torch.cat(xs, 1))
        assert torch.equal(gradient, part(gradients[rank], rank, 1))


def test_all_to_all_sends_rows_by_counts_and_returns_their_gradients(pool):
    sent = [[1, 2], [3, 0]]  # rank 0 keeps a row and sends two, rank 1 sends all three
    received = [[1, 3], [2, 0]]
    xs = tensors(3, 2, seed=3)
    expected = [torch.cat([xs[0][:1], xs[1]]), xs[0][1:]]
    gradients = [torch.randn_like(y) for y in expected]
    back = [torch.cat([gradients[0][:1], gradients[1]]), gradients[0][1:]]
    found = pool.run(collective_and_gradient, RANKS, "all_to_all", xs, gradients, sent, received)
    for (y, gradient), of_y, of_x in zip(found, expected, back):
        assert torch.equal(y, of_y)
        assert torch.equal(gradient, of_x)


@pytest.mark.parametrize(
    "vocab_size", [7, 10, 4]
)  # of 10 rows: three rows of padding; no padding; one rank has only padding
def test_a_vocabulary_divided_over_ranks_gives_the_loss_and_gradients_of_torchs_cross_entropy(
    pool, vocab_size
):
    generator = torch.Generator().manual_seed(4)
    hidden, weight, bias, mask = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((6, 3), (10, 3), (10,), (6,))
    )
    labels = torch.randint(vocab_size, (6,), generator=generator)
    h, w, b = (tensor.clone().requires_grad_() for tensor in (hidden, weight, bias))
    loss = (F.cross_entropy(F.linear(h, w, b)[:, :vocab_size], labels, reduction="none") * mask).sum()
    loss.backward()
    logits = (hidden @ weight.T)[:, :vocab_size]
    found = pool.run(vocab_parallel, RANKS, hidden, weight, bias, labels, mask, vocab_size)
    for rank, ours in enumerate(found):
        torch.testing.assert_close(ours["loss"], loss.detach())
        torch.testing.assert_close(ours["hidden"], h.grad)
        torch.testing.assert_close(ours["weight"], part(w.grad, rank, 0))
        torch.testing.assert_close(ours["bias"], part(b.grad, rank, 0))
        torch.testing.assert_close(ours["logits"][:, :vocab_size], logits)
        assert torch.isneginf(ours["logits"][:, vocab_size:]).all()
        torch.testing.assert_close(ours["embedded"], weight[labels])
        expected = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(ours["log_likelihood"].double(), expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(ours["is_greedy"], logits.argmax(-1) == labels)
