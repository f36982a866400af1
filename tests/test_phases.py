"""Two phases of a task: first tokens against an engine of events in plain Python, figures, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb.cli import run

SPEEDS = (0.5, 1.5)


def served(gaps, sizes, prefills, actions, slots, together):
    """Serve the first `slots` at together(n) / n of the speed; return first tokens and completions."""
    first, end = np.full(len(gaps), np.inf), np.full(len(gaps), np.inf)
    now, held, left, born = 0.0, [[] for _ in SPEEDS], {}, {}

    def until(time):
        for place, speed in enumerate(SPEEDS):
            clock = now
            while held[place]:
                working = held[place][:slots]
                rate = speed * together(len(working)) / len(working)
                leaves = min(working, key=lambda one: left[one])
                step = min(time - clock, left[leaves] / rate)
                for one in working:
                    rest = sizes[one] - prefills[one]
                    if np.isinf(first[one]) and left[one] - rate * step <= rest:
                        first[one] = clock + (left[one] - rest) / rate - born[one]
                    left[one] -= rate * step
                clock += step
                if clock >= time:
                    break
                held[place].remove(leaves)
                end[leaves] = clock - born[leaves]
                first[leaves] = min(first[leaves], end[leaves])

    for number, (gap, size, action) in enumerate(zip(gaps, sizes, actions, strict=True)):
        until(now + gap)
        now += gap
        born[number], left[number] = now, size
        held[action].append(number)
    until(np.inf)
    return first, end


def tasks_of(key, params, number, prefill):
    """Tasks whose prefills are some shares of their sizes, as a trace may have them."""
    tasks = jaxlb.workload.sample(key, params, number)
    share = np.random.default_rng(1).choice(prefill, number)
    return tasks.replace(phases=tasks.phases.replace(prefill=tasks.size * jnp.float32(share)))


@pytest.mark.parametrize(
    ("service", "slots", "together"),
    [
        pytest.param(
            {"discipline": "limited-ps", "slots": 3, "capacity": "batching(0.2)"},
            3,
            lambda n: n / (0.8 + 0.2 * n),
            marks=pytest.mark.slow,
        ),
        pytest.param({"discipline": "fcfs", "slots": 2}, 2, float, marks=pytest.mark.slow),
        ({}, 1, float),
    ],
    ids=["batching", "slots", "fcfs"],
)
def test_first_tokens_come_as_in_an_engine_of_events(service, slots, together, key):
    together_most = together(slots)
    env, params = jaxlb.make(speed=list(SPEEDS), load=0.8 * together_most, prefill=0.3, **service)
    tasks = tasks_of(key, params, 400, [0.0, 0.1, 0.5, 1.0])
    outcome = jaxlb.replay(env, params, "random", tasks, jax.random.key(1))
    given = (np.asarray(leaf, float) for leaf in (tasks.gap, tasks.size, tasks.phases.prefill))
    first, end = served(*given, np.asarray(outcome.action), slots, together)
    np.testing.assert_allclose(outcome.completion, end, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outcome.first_token, first, rtol=1e-4, atol=2e-4)
    assert (outcome.first_token <= outcome.completion * (1 + 1e-5)).all()


def test_figures_are_those_of_the_tasks(key):
    env, params = jaxlb.make(
        speed=[1.0], load=0.5, prefill=0.25, first_token_limit=1.0, token_limit=1.5, deadline_constant=1e9
    )
    found = jaxlb.rollout(env, params, "rr", key, num_lanes=64, num_tasks=2000, warmup=200)
    # M/M/1: the wait, 1 on average, and a quarter of a service; then one time per work, at speed 1.
    assert abs(float(found.time_to_first_token.mean()) - 1.25) < 0.05
    np.testing.assert_allclose(found.time_per_token, 1.0, rtol=1e-3)
    tasks = jaxlb.workload.sample(key, params, 500)
    outcome = jaxlb.replay(env, params, "rr", tasks, jax.random.key(1))
    np.testing.assert_allclose(
        outcome.first_token, outcome.completion - 0.75 * tasks.size, rtol=1e-4, atol=1e-4
    )
    table = jaxlb.compare(env, params, ["rr"], jax.random.key(2), num_lanes=64, num_tasks=2000)
    row = table.row("rr")
    # Its share of tasks with a wait and a quarter of a service within 1: P(W + S/4 <= 1), S exponential.
    wait = np.where(
        np.random.default_rng(0).random(400_000) < 0.5,
        0.0,
        np.random.default_rng(1).exponential(2.0, 400_000),
    )
    exact = (wait + 0.25 * np.random.default_rng(2).exponential(1.0, 400_000) <= 1.0).mean()
    assert abs(row.goodput - exact) < 0.02 and row.goodput_ci[0] < row.goodput < row.goodput_ci[1]
    assert "goodput %" in str(table) and "goodput" in table.to_csv()


def test_systems_without_phases_have_none_of_these_figures(key):
    env, params = jaxlb.make("stable")
    table = jaxlb.compare(env, params, ["rr"], key, num_lanes=4, num_tasks=20)
    assert "goodput" not in table.to_json() and "first token" not in str(table)
    with pytest.raises(AttributeError, match="has no 'goodput'"):
        _ = table.row("rr").goodput


@pytest.mark.slow
def test_a_trace_tells_what_comes_before_the_first_token(tmp_path, key, capsys):
    path = tmp_path / "requests.csv"
    rows = [f"2023-11-16 18:17:{second:02}.0,{100 * second},{10 + second}" for second in range(1, 40)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    trace = jaxlb.read_trace(path, "azure-llm", prefill_weight=0.1)
    np.testing.assert_allclose(trace.prefill, [10.0 * second for second in range(1, 40)])
    np.testing.assert_allclose(trace.size, [20.0 * second - 9.0 * second + 10.0 for second in range(1, 40)])
    assert jaxlb.read_trace(path, "azure-llm").prefill is None
    _, params = jaxlb.make("inference", trace=trace)
    tasks = jaxlb.workload.sample(key, params, 39)
    np.testing.assert_allclose(
        tasks.phases.prefill / tasks.size,
        np.interp(tasks.size, np.sort(params.arrival.task_size), np.sort(trace.prefill / trace.size)),
        rtol=1e-3,
    )
    asked = ["--trace", str(path), "--trace-format", "azure-llm", "--trace-options", "prefill_weight=0.1"]
    sizes = ["--lanes", "4", "--tasks", "20", "--schedulers", "jsq"]
    assert run(["compare", "--scenario", "inference", *asked, *sizes]) == 0
    assert "goodput %" in capsys.readouterr().out
    with pytest.raises(ValueError, match="prefill must be at least 0, and at most the size"):
        jaxlb.read_trace(
            path,
            "csv",
            time_column="TIMESTAMP",
            size_column="GeneratedTokens",
            prefill_column="ContextTokens",
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefill": 1.5}, "prefill = 1.5: must be at most 1"),
        ({"prefill": 0.2, "token_limit": 0.0}, "token_limit = 0: must be above 0"),
        ({"token_limit": 1.0}, "token_limit: must be None where prefill is"),
        ({"prefill": 0.2, "discipline": "srpt"}, "prefill: must be None under discipline 'srpt'"),
        ({"prefill": 0.2, "speeds": "failing"}, "prefill: must be None where speeds change"),
        ({"prefill": 0.2, "limit": 4}, "prefill: must be None where .*tasks are lost"),
    ],
)
def test_what_has_no_phases_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        jaxlb.make("stable", **settings)


def test_a_switch_of_phases_needs_another_environment():
    env, params = jaxlb.make("stable")
    with pytest.raises(ValueError, match="prefill: the environment was made without"):
        jaxlb.rollout(env, params.replace(prefill=0.2), "rr", jax.random.key(0), 2, 5)
