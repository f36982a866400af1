"""Several dispatchers and departures that are told, against plain Python; rules of fleets, against theory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import dispatching
from jaxlb.loop import streams
from jaxlb.params import canonical
from jaxlb.replaying import _nothing, _watched, watch
from jaxlb.types import Dispatching, Scheduler, Task

SPEED = (1.0, 2.0, 0.5)


def drawn(number, seed=0):
    rng = np.random.default_rng(seed)
    return Task(
        gap=jnp.asarray(rng.exponential(0.45, number), jnp.float32),
        size=jnp.asarray(rng.exponential(1.0, number), jnp.float32),
        priority=jnp.zeros(number, jnp.int32),
        deadline=jnp.full(number, 5.0, jnp.float32),
    )


def _none(env, params, lanes):
    return jnp.zeros(env.num_processors, jnp.int32)


def _fewest(variables, memory, observation, key):
    action = jnp.argmin(memory).astype(jnp.int32)
    return action, memory.at[action].add(1)


def _one_less(variables, memory, answer):
    return memory.at[answer.processor].add(-1)


FEWEST = Scheduler("fewest", (), _none, _fewest, _one_less)
"""Fewest requests in flight, the first of equals."""


class Python:
    """FCFS queues, and dispatchers that each get tasks in turn and count what they have in flight."""

    def __init__(self, tasks, dispatchers):
        gaps, sizes = np.asarray(tasks.gap, np.float64), np.asarray(tasks.size, np.float64)
        in_flight = np.zeros((dispatchers, len(SPEED)), int)
        free, now, sent = np.zeros(len(SPEED)), 0.0, []  # (departure, processor, dispatcher, arrival)
        decided = np.zeros(dispatchers)
        self.actions, self.answers = [], [[] for _ in range(dispatchers)]
        for number, (gap, size) in enumerate(zip(gaps, sizes, strict=True)):
            now += gap
            gone = sorted(one for one in sent if one[0] <= now)
            sent = [one for one in sent if one[0] > now]
            for place, (departure, processor, who, arrival) in enumerate(gone):
                in_flight[who, processor] -= 1
                behind = sum(one[1] == processor for one in (*sent, *gone[place + 1 :]))
                self.answers[who].append((processor, departure - arrival, departure - decided[who], behind))
            who = number % dispatchers
            action = int(in_flight[who].argmin())
            in_flight[who, action] += 1
            decided[who] = now
            free[action] = max(free[action], now) + size / SPEED[action]
            sent.append((free[action], action, who, now))
            self.actions.append(action)


@pytest.mark.parametrize("dispatchers", [1, 2, 5])
def test_each_dispatcher_counts_its_own_requests_as_plain_python_does(dispatchers):
    tasks = drawn(3000)
    env, params = jaxlb.make(speed=SPEED, load=0.7, dispatchers=dispatchers, in_turn=True)
    outcome = jaxlb.replay(env, params, FEWEST, tasks, jax.random.key(0))
    assert np.array_equal(outcome.action, Python(tasks, dispatchers).actions)


def _nothing_heard(env, params, lanes):
    return {"flight": _none(env, params, lanes), "heard": jnp.zeros(4), "number": jnp.int32(0)}


def _act_and_keep(variables, memory, observation, key):
    action, flight = _fewest(variables, memory["flight"], observation, key)
    return action, memory | {"flight": flight}


def _keep(variables, memory, answer):
    a = answer
    told = jnp.stack(
        [a.processor.astype(jnp.float32), a.latency, a.since, a.queue_length.astype(jnp.float32)]
    )
    weight = 1.0 + (memory["number"] % 7).astype(jnp.float32)  # so that order matters
    return {
        "flight": _one_less(variables, memory["flight"], answer),
        "heard": memory["heard"] + weight * told,
        "number": memory["number"] + 1,
    }


def test_answers_come_in_order_and_say_what_happened():
    tasks = drawn(800)
    env, params = jaxlb.make(speed=SPEED, load=0.7, dispatchers=3, in_turn=True, answers=True)
    rule = Scheduler("keeps", (), _nothing_heard, _act_and_keep, _keep)
    (_, memory), _ = _watched(env, canonical(params), rule, tasks, streams(jax.random.key(0)), _nothing, None)
    # After the last task the first comes again, and with it what has left until then.
    again = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:1]]), tasks)
    told = [np.asarray(answers) for answers in Python(again, 3).answers]
    last = [np.asarray(answers) for answers in Python(tasks, 3).answers]
    for who in range(3):
        found = np.asarray(memory["heard"])[who], int(memory["number"][who])
        assert len(last[who]) <= found[1] <= len(told[who])
        heard = told[who][: found[1]]
        np.testing.assert_allclose(found[0], (1.0 + np.arange(len(heard)) % 7) @ heard, rtol=2e-4)


@pytest.mark.slow
def test_one_dispatcher_that_counts_is_jsq_under_every_discipline():
    tasks = drawn(2000, seed=1)
    each: list[dict[str, Any]] = [{}, {"discipline": "ps"}, {"discipline": "srpt"}]
    for settings in each:
        env, params = jaxlb.make(speed=SPEED, load=0.7, **settings)
        own, other = (jaxlb.replay(env, params, rule, tasks, jax.random.key(0)) for rule in (FEWEST, "jsq"))
        assert np.array_equal(own.action, other.action), settings
        np.testing.assert_allclose(own.completion, other.completion, rtol=1e-4)
    # Where tasks are refused: were the count wrong, it would send some where there is no room.
    env, params = jaxlb.make(speed=[1.0] * 3, load=0.9, limit=2)
    summary = jaxlb.rollout(env, params, FEWEST, jax.random.key(1), 8, 2000)
    exact = jaxlb.rollout(env, params, "jsq", jax.random.key(1), 8, 2000)
    np.testing.assert_array_equal(summary.lost_rate, exact.lost_rate)
    assert 0.05 < summary.lost_rate.mean() < 0.2


@pytest.mark.slow
def test_old_queue_lengths_are_corrected_to_those_of_this_moment():
    """By one dispatcher; several have the figures of the last poll and what each did itself."""
    tasks, key = drawn(2000, seed=2), jax.random.key(0)
    fresh = jaxlb.make(speed=SPEED, load=0.7, answers=True)
    for interval in (0.3, 4.0):
        old = jaxlb.make(speed=SPEED, load=0.7, measure_interval=interval)
        for name in ("jsq", "sed"):
            found = jaxlb.replay(*old, jaxlb.scheduler("corrected", rule=name), tasks, key)
            assert np.array_equal(found.action, jaxlb.replay(*fresh, name, tasks, key).action)
            assert not np.array_equal(found.action, jaxlb.replay(*old, name, tasks, key).action)
    # Where loads follow from lengths, they are corrected too.
    hidden: dict[str, Any] = {
        "speed": SPEED,
        "load": 0.7,
        "size_visible": False,
        "wait_visible": False,
        "queue_capacity": 64,
    }
    found = jaxlb.replay(*jaxlb.make(**hidden, measure_interval=4.0), "corrected", tasks, key)
    expected = jaxlb.replay(*jaxlb.make(**hidden, answers=True), "universal", tasks, key)
    assert np.array_equal(found.action, expected.action)


def test_lanes_are_as_they_are_alone():
    env, params = jaxlb.make(speed=SPEED, load=0.7, dispatchers=3, in_turn=True)
    each = [drawn(300, seed) for seed in range(3)]
    tasks = jax.tree.map(lambda *leaves: jnp.stack(leaves, -1), *each)
    outcome = jaxlb.replay(env, params, FEWEST, tasks, jax.random.key(0))
    for lane, one in enumerate(each):
        assert np.array_equal(np.asarray(outcome.action)[:, lane], Python(one, 3).actions)


def test_tasks_come_to_any_dispatcher_alike_and_independently():
    env, _ = jaxlb.make("stable", dispatchers=5)
    number = jnp.arange(20_000, dtype=jnp.int32)[:, None]
    seeds = Dispatching(seed=jnp.asarray([7, 8, 123456789], jnp.uint32), since=jnp.zeros((5, 3)))
    who = np.asarray(dispatching.dispatcher(env, seeds, number))
    for lane in who.T:
        # Chi squared with 4 and with 24 degrees of freedom: 1 in 10^5 by chance.
        counts = np.bincount(lane, minlength=5)
        assert ((counts - 4000.0) ** 2 / 4000.0).sum() < 28.5
        pairs = np.bincount(5 * lane[:-1] + lane[1:], minlength=25)
        assert ((pairs - 800.0) ** 2 / 800.0).sum() < 62
    across = np.bincount(5 * who[:, 0] + who[:, 1], minlength=25)
    assert ((across - 800.0) ** 2 / 800.0).sum() < 62


def _seen(scheduler, memory, observation):
    return observation.age, observation.gap, observation.assigned, observation.dispatcher, observation.since


@pytest.mark.parametrize("apart", [False, True])
def test_a_dispatcher_sees_its_own_figures_and_its_own_doing(apart):
    tasks = drawn(400)
    env, params = jaxlb.make(
        speed=SPEED, load=0.7, dispatchers=2, in_turn=True, measure_interval=3.0, polled_apart=apart
    )
    outcome, (age, gap, assigned, who, since) = watch(
        env, canonical(params), jaxlb.scheduler("rr"), tasks, jax.random.key(0), _seen
    )
    now = np.cumsum(np.asarray(tasks.gap, np.float64))
    assert np.array_equal(who, np.arange(400) % 2)
    np.testing.assert_allclose(gap[2:], now[2:] - now[:-2], rtol=1e-4)
    phase = np.where(np.arange(400) % 2 == 1, 1.5 * apart, 0.0)
    np.testing.assert_allclose(age, (now + phase) % 3.0, atol=1e-3)
    published = now - np.asarray(age)
    size, action = np.asarray(tasks.size), np.asarray(outcome.action)
    for index in range(50, 400):
        own = [j for j in range(index) if j % 2 == index % 2 and now[j] > published[index]]
        work = [sum(size[j] for j in own if action[j] == p) for p in range(3)]
        np.testing.assert_allclose(assigned[index], work, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(since)[np.arange(400), who], gap)
    # Round Robin of each: both begin at processor 0.
    assert np.array_equal(action[::2], np.arange(200) % 3)
    assert np.array_equal(action[1::2], np.arange(200) % 3)


def test_rules_within_others_are_refused_where_they_would_hear_nothing():
    inner = jaxlb.scheduler("least-request")
    for make in (
        lambda: jaxlb.scheduling.guarded(inner),
        lambda: jaxlb.scheduler("guardrails", rule="c3"),
        lambda: jaxlb.scheduler("corrected", rule="c3"),
        lambda: jaxlb.scheduler("deadline-admission", rule="c3"),
        lambda: jaxlb.scheduling.adaptive.hedge((inner,)),
    ):
        with pytest.raises(ValueError, match="does not tell it who has left"):
            make()


def test_bad_settings_are_refused():
    bad: list[tuple[dict[str, Any], str]] = [
        ({"dispatchers": 0}, "dispatchers = 0"),
        ({"in_turn": 1}, "in_turn = 1: must be True or False"),
    ]
    for settings, words in bad:
        with pytest.raises(ValueError, match=words):
            jaxlb.make("stable", **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("told", "exact"), [("any", 1.666667), ("shorter-of-two", 1.375702)])
def test_jiq_with_several_dispatchers_comes_near_the_limit_of_large_systems(told, exact):
    """Lu and others (2011): 500 processors, 100 dispatchers, load 0.8.

    Four lanes of 20,000 tasks have a standard error of 1.2 to 1.6 %: 1 in 1,000 by chance.
    """
    env, params = jaxlb.make(speed=[1.0] * 500, load=0.8, dispatchers=100, answers=True, queue_capacity=16)
    rule = jaxlb.scheduler("jbt", told=told)
    summary = jaxlb.rollout(env, params, rule, jax.random.key(0), 4, 20_000, 10_000)
    assert summary.queue_overflows.sum() == 0
    np.testing.assert_allclose(summary.mean_completion.mean(), exact, rtol=0.05)
