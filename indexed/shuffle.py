"""Megatron-LM's shuffle of a sample index: Fisher-Yates with the numbers of C++'s std::mt19937_64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .blend import compile_if_long


def shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    """Shuffles rows (n, columns) in place, with mt19937_64(seed + 1), and returns them."""
    compile_if_long(_shuffle, len(rows))(rows, bounded_draws(seed + 1, len(rows)))
    return rows


def _shuffle(rows: np.ndarray, partners: np.ndarray) -> None:
    """Fisher-Yates from the last row on: swaps row i and row partners[i] <= i."""
    for i in range(len(rows) - 1, 0, -1):
        j = partners[i]
        for column in range(rows.shape[1]):
            rows[i, column], rows[j, column] = rows[j, column], rows[i, column]


def bounded_draws(seed: int, count: int) -> np.ndarray:
    """(count,) int64: entry i is a number of mt19937_64(seed) modulo i + 1, drawn for i = count - 1 to 1."""
    blocks: list[np.ndarray] = []
    need = max(count - 1, 0)
    stream = mt19937_64(seed)
    while need > 0:
        blocks.append(next(stream)[:need])
        need -= len(blocks[-1])
    numbers = np.concatenate([*blocks, np.zeros(1, np.uint64)])[:count][::-1]
    return (numbers % np.arange(1, count + 1, dtype=np.uint64)).astype(np.int64)


def mt19937_64(seed: int) -> Iterator[np.ndarray]:
    """An endless stream of arrays of 312 uint64: the 64-bit Mersenne Twister (Nishimura 2000).

    numpy has only the 32-bit one.
    """
    size, half, full = 312, 156, (1 << 64) - 1
    state = [seed & full]
    for i in range(1, size):
        state.append((6364136223846793005 * (state[-1] ^ (state[-1] >> 62)) + i) & full)
    x = np.array(state, np.uint64)
    upper, lower = np.uint64(full ^ ((1 << 31) - 1)), np.uint64((1 << 31) - 1)
    odd = np.array([0, 0xB5026F5AA96619E9], np.uint64)

    def twist(current: np.ndarray, following: np.ndarray, far: np.ndarray) -> np.ndarray:
        y = (current & upper) | (following & lower)
        twisted: np.ndarray = far ^ (y >> np.uint64(1)) ^ odd[(y & np.uint64(1)).astype(np.intp)]
        return twisted

    while True:
        # A new word is made of the old one, the old one after it and the word 156 places on, which is an old
        # one for the first half of the state and a new one for the second.
        first = twist(x[:half], x[1 : half + 1], x[half:])
        x = np.concatenate([first, twist(x[half:], np.append(x[half + 1 :], first[0]), first)])
        y = x ^ ((x >> np.uint64(29)) & np.uint64(0x5555555555555555))
        y ^= (y << np.uint64(17)) & np.uint64(0x71D67FFFEDA60000)
        y ^= (y << np.uint64(37)) & np.uint64(0xFFF7EEE000000000)
        yield y ^ (y >> np.uint64(43))
