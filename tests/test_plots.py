"""Pictures show the numbers they claim to show."""

import jax
import numpy as np
import pytest

import jaxlb
from jaxlb import workload
from jaxlb.report import plots


def test_the_backlog_path_is_the_workload_of_each_queue(key):
    env, params = jaxlb.make("heavy-tail")
    tasks = workload.sample(key, params, 120)
    outcome = jaxlb.replay(env, params, jaxlb.scheduler("lwr"), tasks, key)
    speed = np.asarray(params.speed)
    times, path = plots.backlog_path(tasks, outcome, speed)
    arrival = np.cumsum(np.asarray(tasks.gap, np.float64))
    left, now, place = np.zeros(4), arrival[0], 0
    for index, at in enumerate(arrival):
        while place < len(times) and times[place] < at:
            np.testing.assert_allclose(
                path[:, place], np.maximum(left - speed * (times[place] - now), 0), atol=1e-3
            )
            place += 1
        left = np.maximum(left - speed * (at - now), 0)
        left[int(outcome.action[index])] += float(tasks.size[index])
        now = at
    assert place > 1900


@pytest.mark.slow
def test_pictures_hold_every_scheduler(key, tmp_path):
    env, params = jaxlb.make("seed")
    chosen = {name: jaxlb.scheduler(name) for name in ("rr", "lwr", "oracle")}
    table = jaxlb.compare(env, params, chosen, key, num_lanes=20, num_tasks=100)
    figure = plots.completion_tails(table)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    # From empty queues and on: what has not settled says so.
    assert set(lines) == {"rr (not stationary)", "lwr (not stationary)", "oracle (not stationary)"}
    lines = {label.split()[0]: line for label, line in lines.items()}
    for name, line in lines.items():
        times, longer = (np.asarray(values, float) for values in line.get_data())
        assert np.nanmax(np.diff(longer)) <= 0
        half = times[np.nansum(longer > 0.5) - 1]
        np.testing.assert_allclose(half, table.row(name).p50_completion, rtol=0.02)
    axes = table.plot("sla_violation_rate").axes[0]
    # Nor has it an interval.
    (intervals,) = axes.collections
    assert not any(len(ends) and np.isfinite(ends).all() for ends in intervals.get_segments())
    bars = axes.patches
    np.testing.assert_allclose(
        sorted(bar.get_width() for bar in bars),
        sorted(100 * row.sla_violation_rate for row in table.schedulers),
    )
    written = plots.save_all(tmp_path, table, env, params, chosen, jax.random.key(1))
    assert all(path.stat().st_size > 10_000 for path in written)


def test_predictions_and_agreement_by_load_are_drawn_as_they_are():
    truth = np.array([[1.0, 2.0], [3.0, 1.0], [5.0, 4.0], [2.0, 8.0]])
    chosen, load = np.array([1.0, 1.0, 5.0, 8.0]), np.array([0.1, 0.1, 3.0, 3.0])
    figure = plots.completions(truth, truth, chosen, load)
    cells = figure.axes[0].collections[0]
    assert cells.get_array().sum() == truth.size
    middle, rate = figure.axes[1].lines[0].get_data()
    assert dict(zip(middle, rate, strict=True)) == {0.1: 100.0, 3.0: 0.0}
    # A classifier has no predictions of times.
    assert len(plots.completions(truth * np.nan, truth, chosen, load).axes) == 1
