"""The replay memory against a plain list. Statistical checks: fixed keys, 5 standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlb.learn import replay


def filled(count, num_rows=5, num_lanes=3, prioritised=False):
    """A memory that got rows 0, 1, ..., each holding its number and its lanes'."""
    lane = jnp.arange(num_lanes)
    row = lambda number: {"row": jnp.full(num_lanes, number), "lane": lane}  # noqa: E731
    memory = replay.start(row(0), num_rows, prioritised)
    for number in range(count):
        memory = replay.add(memory, row(number))
    return memory


@pytest.mark.parametrize("count", [3, 5, 13])
def test_the_last_rows_are_kept(count):
    memory = filled(count)
    kept = set(np.asarray(memory.rows["row"][:, 0])[: min(count, 5)].tolist())
    assert kept == set(range(max(count - 5, 0), count))
    assert int(memory.count) == count


@pytest.mark.parametrize("count", [4, 5, 13])
@pytest.mark.parametrize("horizon", [1, 2])
def test_steps_are_drawn_evenly_and_have_their_successors(key, count, horizon):
    memory = filled(count)
    (row, lane), weight = replay.draw(memory, key, 10_000, horizon)
    number = memory.rows["row"][row, lane]
    np.testing.assert_array_equal(memory.rows["row"][(row + horizon) % 5, lane], number + horizon)
    np.testing.assert_array_equal(memory.rows["lane"][row, lane], lane)
    usable = np.arange(max(count - 5, 0), count - horizon)
    cells = np.asarray(number) * 3 + np.asarray(lane)
    frequency = np.bincount(cells, minlength=3 * count).reshape(count, 3)[usable]
    assert frequency.sum() == 10_000
    expected = 10_000 / frequency.size
    assert np.abs(frequency - expected).max() < 5 * np.sqrt(expected)
    np.testing.assert_array_equal(weight, 1.0)


def test_priorities_are_followed_and_corrected(key):
    memory = filled(13, prioritised=True)
    place = memory.count - 3, jnp.int32(1)  # row 10 of lane 1
    memory = replay.prioritise(memory, (place[0][None] % 5, place[1][None]), jnp.array([4.0]))
    (row, lane), weight = replay.draw(memory, key, 20_000, 1)
    hit = np.asarray((row == place[0] % 5) & (lane == 1))
    # 12 usable steps, one of priority 4, the rest of 1.
    share = 4.0 / 15.0
    # Candidates are themselves drawn: a little more noise than a binomial's.
    assert abs(hit.mean() - share) < 0.02
    np.testing.assert_allclose(np.asarray(weight)[~hit] / np.asarray(weight)[hit][0], 4.0, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(weight).mean(), 1.0, atol=0.05)
    assert float(replay.add(memory, jax.tree.map(lambda leaf: leaf[0], memory.rows)).priority.max()) == 4.0


def test_without_priorities_there_are_none():
    memory = filled(5)
    assert memory.priority is None
    assert replay.prioritise(memory, (jnp.zeros(1, int), jnp.zeros(1, int)), jnp.ones(1)) is memory
