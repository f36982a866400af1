"""Pictures show the numbers they claim to show."""

import jax
import numpy as np
import pytest

import jaxlb
from jaxlb import charts, workload
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
    table = jaxlb.compare(env, params, chosen, key, num_lanes=20, num_tasks=100, warmup=0)
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


def test_of_many_lines_the_best_and_the_baseline_are_told_apart():
    names = [f"rule {place}" for place in range(18)]
    styles = charts.told_apart(names, names, always=["rule 15"])
    coloured = [name for name in names if styles[name]["zorder"] > 2]
    assert coloured == [*names[:7], "rule 15"]
    assert len({(styles[name]["color"], styles[name]["linestyle"]) for name in coloured}) == 8
    points = {
        name: [(load, place + load, np.nan, np.nan, False) for load in (0.2, 0.6)]
        for place, name in enumerate(names)
    }
    figure = charts.curves({"": points}, "load", "completion time", "many", always=["rule 15"])
    texts = [text for text in figure.axes[0].texts if text.get_text() in names]
    assert sorted(text.get_text() for text in texts) == sorted(coloured)
    heights = {text.get_text(): text.get_position()[1] for text in texts}
    # None lies over another, and they stand in the order of the lines.
    assert np.diff(sorted(heights.values())).min() > 0.06
    assert sorted(heights, key=lambda name: heights[name]) == coloured
    assert any(text.get_text() == "grey: the other 10" for text in figure.axes[0].texts)


def test_violations_of_each_priority_are_drawn(key):
    env, params = jaxlb.make("seed")
    table = jaxlb.compare(env, params, ["lwr", "greedy"], key, num_lanes=8, num_tasks=100)
    axes = table.plot("sla_violation_rate_by_priority").axes[0]
    order = [label.get_text().split()[0] for label in axes.get_yticklabels()]
    drawn = np.array([container.lines[0].get_xdata() for container in axes.containers])
    rates = np.array([table.row(name).sla_violation_rate_by_priority for name in order])
    np.testing.assert_allclose(drawn.T, 100 * rates)
    assert len(drawn) == 3


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


def test_all_figures_of_a_training_are_drawn_that_has_none_of_the_known_ones():
    rows = [{"iteration": n, "seed": 0, "own": n / 2.0, "iterations_per_second": 1.0} for n in (1, 2, 3)]
    (panel,) = plots.learning_curves(rows).axes
    assert panel.get_title() == "own"
    np.testing.assert_array_equal(panel.lines[-1].get_ydata(), [0.5, 1.0, 1.5])
    rows = [row | {"td_error": 1.0} for row in rows]
    assert [axes.get_title() for axes in plots.learning_curves(rows).axes] == ["temporal-difference error"]
