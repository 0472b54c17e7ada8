import numpy as np
import pytest

from mt.indexed.shuffle import bounded_draws, mt19937_64, shuffled


def test_mt19937_64_gives_the_10000th_number_of_the_c_plus_plus_standard():
    # [rand.predef]: the 10000th number of a default-constructed mt19937_64 (seed 5489) is
    # 9981545732273789042.
    stream = mt19937_64(5489)
    numbers = np.concatenate([next(stream) for _ in range(33)])
    assert int(numbers[9999]) == 9981545732273789042
    assert bounded_draws(5489, 4).tolist() == [
        0,
        int(numbers[2]) % 2,
        int(numbers[1]) % 3,
        int(numbers[0]) % 4,
    ]


def test_mt19937_64_follows_the_reference_recurrence():
    """Compared with Nishimura's scalar loop."""
    full, state = (1 << 64) - 1, [77]
    for i in range(1, 312):
        state.append((6364136223846793005 * (state[-1] ^ (state[-1] >> 62)) + i) & full)
    wanted = []
    for i in range(700):
        j = i % 312
        y = (state[j] & 0xFFFFFFFF80000000) | (state[(j + 1) % 312] & 0x7FFFFFFF)
        state[j] = state[(j + 156) % 312] ^ (y >> 1) ^ (0xB5026F5AA96619E9 if y & 1 else 0)
        y = state[j]
        y ^= (y >> 29) & 0x5555555555555555
        y ^= (y << 17) & 0x71D67FFFEDA60000
        y ^= (y << 37) & 0xFFF7EEE000000000
        wanted.append(y ^ (y >> 43))
    stream = mt19937_64(77)
    assert np.concatenate([next(stream) for _ in range(3)])[:700].tolist() == wanted


@pytest.mark.parametrize("count", [0, 1, 2, 313, 1000])
@pytest.mark.parametrize("compile_from", [0, 1 << 40], ids=["compiled", "plain"])
def test_rows_are_shuffled_as_by_a_fisher_yates_loop(monkeypatch, count, compile_from):
    monkeypatch.setattr("mt.indexed.blend.COMPILE_FROM", compile_from)
    stream, drawn = mt19937_64(6), []
    while len(drawn) < count:
        drawn += next(stream).tolist()
    order = list(range(count))
    for number, i in enumerate(range(count - 1, 0, -1)):
        j = drawn[number] % (i + 1)
        order[i], order[j] = order[j], order[i]
    rows = np.arange(2 * count).reshape(count, 2)
    assert (shuffled(rows.copy(), 5)[:, 0] // 2).tolist() == order
    assert np.array_equal(shuffled(rows.copy(), 5), rows[order])
