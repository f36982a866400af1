"""The replay memory against a plain list. Statistical checks: fixed keys, 5 standard errors."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlb.learn import replay


def filled(count, num_rows=5, num_lanes=3):
    """A memory that got rows 0, 1, ..., each holding its number and its lanes'."""
    lane = jnp.arange(num_lanes)
    row = lambda number: {"row": jnp.full(num_lanes, number), "lane": lane}  # noqa: E731
    memory = replay.start(row(0), num_rows)
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
@pytest.mark.parametrize("following", [1, 2])
def test_steps_are_drawn_evenly_and_have_their_successors(key, count, following):
    memory = filled(count)
    row, lane = replay.draw(memory, key, 10_000, following)
    number = memory.rows["row"][row, lane]
    np.testing.assert_array_equal(memory.rows["row"][(row + following) % 5, lane], number + following)
    np.testing.assert_array_equal(memory.rows["lane"][row, lane], lane)
    usable = np.arange(max(count - 5, 0), count - following)
    cells = np.asarray(number) * 3 + np.asarray(lane)
    frequency = np.bincount(cells, minlength=3 * count).reshape(count, 3)[usable]
    assert frequency.sum() == 10_000
    expected = 10_000 / frequency.size
    assert np.abs(frequency - expected).max() < 5 * np.sqrt(expected)
