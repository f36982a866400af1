"""Rules of production routers: their choices, worked out by hand, and what they hear of."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb.scheduling import fleets, routers
from jaxlb.types import Answer
from tests import small
from tests.choices import observation

ROUTERS = (
    *("peak-ewma", "peak-ewma(peaks=false)", "least-request", "least-request(bias=1)", "client-wrr", "c3"),
    *("bounded-loads", "gateway", "prequal", "jbt", "jbt(told=shorter-of-two)", "lsq", "lsq(ask=2)"),
    *("tidal", "slow-start", "replicas"),
)


class Router:
    """A scheduler with its memory, in one lane; the mean service of its processors is 1."""

    def __init__(self, name, speed=(1.0, 1.0), dispatchers=1, **options):
        self.scheduler, self.speed = jaxlb.scheduler(name, **options), speed
        env, params = jaxlb.make(speed=list(speed), load=0.5, dispatchers=dispatchers, answers=True)
        self.memory = self.scheduler.start(env, params, ())

    def act(self, queue_length=None, gap=0.0, present=None, up=None, age=0.0, seed=0):
        zero = np.zeros(len(self.speed))
        seen = observation(zero, self.speed, zero if queue_length is None else queue_length)
        present = jnp.asarray(zero if present is None else present, jnp.int32)
        seen = seen.replace(gap=jnp.float32(gap), present=present, age=jnp.float32(age))
        seen = seen if up is None else seen.replace(up=jnp.asarray(up))
        action, self.memory = self.scheduler.act((), self.memory, seen, jax.random.key(seed))
        assert action.dtype == jnp.int32 and action.shape == ()
        return int(action)

    def answer(self, processor, latency=1.0, since=0.0, service=1.0, failed=False, queue_length=0):
        departed = self.scheduler.departed
        assert departed is not None
        self.memory = departed(
            (),
            self.memory,
            Answer(
                processor=jnp.int32(processor),
                latency=jnp.float32(latency),
                service=jnp.float32(service),
                failed=jnp.asarray(failed),
                queue_length=jnp.int32(queue_length),
                since=jnp.float32(since),
            ),
        )


def test_peak_ewma_rises_at_once_and_falls_in_time():
    router = Router("peak-ewma", time_constant=10.0, default=1.0)
    first = router.act()
    assert router.memory.in_flight.tolist() == [int(first == 0), int(first == 1)]
    router.answer(first, latency=5.0, since=2.0)
    assert router.memory.average[first] == 5.0  # a peak
    # The other one has the default of 1 and no request: chosen, though it has not answered.
    assert router.act(gap=3.0) == 1 - first
    # That one has a request and no answer: the last choice, whatever the first costs.
    assert router.act(gap=1.0) == first
    # After 3 + 1 since the update at 2, i.e. 4 - 2 = 2, and 1 more: 5 falls to 5 e^(-0.3) + 3 (1 - e^(-0.3)).
    router.answer(first, latency=3.0, since=1.0)
    kept = math.exp(-(3.0 + 1.0 + 1.0 - 2.0) / 10.0)
    np.testing.assert_allclose(router.memory.average[first], kept * 5.0 + (1 - kept) * 3.0, rtol=1e-6)
    router.answer(1 - first, latency=4.0, since=1.0)
    # Costs read as if 0 came now: the first 4.5 e^-1.9, the other 4 e^-1.9, both without a request.
    assert router.act(gap=20.0) == 1 - first
    # What fails at once is not quick.
    router.answer(1 - first, latency=0.0, since=0.0, failed=True)
    assert router.memory.average[1 - first] == 4.0


def test_envoys_average_keeps_no_peaks():
    router = Router("peak-ewma", time_constant=10.0, default=1.0, peaks=False)
    first = router.act()
    router.answer(first, latency=5.0, since=2.0)
    kept = math.exp(-0.2)
    np.testing.assert_allclose(router.memory.average[first], kept + (1 - kept) * 5.0, rtol=1e-6)


def test_two_different_processors_are_drawn_evenly():
    seen = observation([0.0] * 4, queue_length=[0] * 4)
    cost = jnp.asarray([3.0, 1.0, 2.0, 4.0])
    keys = jax.random.split(jax.random.key(0), 6000)
    chosen = jax.vmap(lambda key: routers.two_of(seen, cost, key))(keys)
    # Of six pairs, the best is in three, the next in two more, the third in one, the worst in none; 4 sigma.
    counts = np.bincount(np.asarray(chosen), minlength=4)
    np.testing.assert_allclose(counts, [1000, 3000, 2000, 0], atol=155)


def test_least_request_counts_its_own_requests():
    router = Router("least-request", speed=(1.0,) * 3, d=20)  # all are drawn, but for a chance of 3 in 10^4
    assert sorted(router.act(seed=seed) for seed in range(3)) == [0, 1, 2]
    router.answer(1)
    assert router.act(seed=3) == 1


def test_weighted_least_request_takes_turns_by_deadlines():
    router = Router("least-request", speed=(2.0, 1.0), bias=1.0)
    # Due at 1/2 and 1. The first: again after 1/2 x 1 request; then after 1/2 x 2, and so on.
    assert [router.act() for _ in range(6)] == [0, 0, 1, 0, 1, 0]
    # By hand: (.5, 1) -> 0 at .5, next .5 + .5 = 1, tie to the lowest: 0 at 1, next 1 + 2/2 = 2; 1 at 1, next
    # 1 + 1 = 2; 0 at 2, next 2 + 3/2 = 3.5; 1 at 2, next 2 + 2 = 4; 0 at 3.5.


def test_client_wrr_weighs_by_what_a_request_costs():
    router = Router("client-wrr", speed=(1.0, 1.0, 1.0), time_constant=100.0, penalty=1.0)
    assert [router.act() for _ in range(3)] == [0, 1, 2]  # nothing is known: plain turns
    router.answer(0, service=0.5)
    router.answer(1, service=1.0)
    # Served / utilisation: 2, 1, and the median of these, 1.5, for the one that has not reported: 4 : 2 : 3.
    router.memory = router.memory.replace(credit=jnp.zeros(3))
    chosen = [router.act() for _ in range(9)]
    assert np.bincount(chosen).tolist() == [4, 2, 3]
    router.answer(1, failed=True, service=0.0)
    # Utilisation 0.01, failures per served 1: 0.01 / 1.01.
    router.memory = router.memory.replace(credit=jnp.zeros(3))
    assert 1 not in [router.act() for _ in range(9)]


def test_c3_ranks_by_the_cube_of_the_queue():
    router = Router("c3", dispatchers=2, alpha=0.5)
    assert [router.act(), router.act()] == [0, 1]  # those that have not answered first
    router.answer(0, latency=4.0, service=1.0, queue_length=2)
    router.answer(1, latency=2.0, service=1.5, queue_length=1)
    # 4 - 1 + 3^3 x 1 = 30 against 2 - 1.5 + 2^3 x 1.5 = 12.5.
    assert router.act() == 1
    # In flight x 2 dispatchers: 2 - 1.5 + 4^3 x 1.5 = 96.5 now.
    assert router.act() == 0
    router.answer(0, latency=2.0, service=1.0, queue_length=0)
    # Averages by 1/2: response 3, service 1, queue 1: 3 - 1 + 2^3 = 10.
    np.testing.assert_allclose(
        [router.memory.response[0], router.memory.service[0], router.memory.queue[0]], [3.0, 1.0, 1.0]
    )


def test_bounded_loads_goes_on_along_the_ring():
    router = Router("bounded-loads", speed=(1.0,) * 4)
    chosen = [router.act(seed=seed) for seed in range(8)]
    # At most ceil(1.25 x n / 4) each with n requests in flight.
    for number in range(1, 9):
        assert np.bincount(chosen[:number]).max() <= math.ceil(1.25 * number / 4)
    full = Router("bounded-loads", speed=(1.0,) * 4, factor=1.0)
    full.memory = full.memory.replace(in_flight=jnp.asarray([3, 3, 0, 3]))
    assert [full.act(seed=seed) for seed in range(3)] == [2, 2, 2]  # up to ceil(10 / 4), and so on


def test_a_gateway_adds_scores():
    router = Router("gateway", speed=(1.0,) * 3, queue=1.0, active=1.0, load_aware=0.0)
    router.memory = router.memory.replace(in_flight=jnp.asarray([4, 0, 2]))
    # Queue scores 1, 0, 0.5; of requests 0, 1, 0.5: all 1; with twice the first 2, 1, 1.5.
    assert Router("gateway", speed=(1.0,) * 3, active=0.0).act([1, 5, 3]) == 0
    assert router.act([4, 4, 4]) == 1  # all queues alike score 1
    heavy = Router("gateway", speed=(1.0,) * 3, queue=2.0)
    heavy.memory = router.memory.replace(in_flight=jnp.asarray([4, 0, 2]))
    assert heavy.act([1, 5, 3]) == 0
    assert Router("gateway", queue=0.0, active=0.0, load_aware=1.0).act([127, 100]) == 1


def test_prequal_chooses_among_what_it_has_probed():
    router = Router("prequal", speed=(1.0,) * 4, max_age=10.0)
    router.act(present=[9, 9, 9, 9])
    m = router.memory
    assert (m.processor >= 0).sum() == 3 and (m.in_flight[m.processor >= 0] == 9).all()
    # One hot, two cold: the quicker of these, though another has less in flight.
    pool = m.replace(
        processor=jnp.asarray([0, 1, 2] + [-1] * 13),
        in_flight=jnp.asarray([9.0, 2.0, 3.0] + [0.0] * 13),
        latency=jnp.asarray([0.1, 5.0, 4.0] + [0.0] * 13),
        age=jnp.asarray([1.0, 2.0, 3.0] + [0.0] * 13),
        levels=jnp.asarray([1.0, 2.0, 3.0, 4.0] * 16),
        probed=jnp.int32(64),
    )
    router.memory = pool
    assert router.act(gap=1.0) == 2
    # All hot: the least in flight.
    router.memory = pool.replace(levels=jnp.ones(64))
    assert router.act(gap=1.0) == 1
    # Of hot ones, the worst goes: that of most in flight.
    router.memory = pool.replace(
        in_flight=jnp.asarray([9.0, 7.0, 1.0] + [0.0] * 13), levels=jnp.ones(64), turn=jnp.asarray(True)
    )
    assert router.act(gap=0.0, present=[20] * 4) == 2 and 9.0 not in router.memory.in_flight[:16].tolist()
    # Answers that are too old are gone; with fewer than two, any.
    router.memory = pool
    assert (jnp.isin(router.memory.processor, jnp.asarray([0, 1]))).sum() == 2
    router.act(gap=7.5)
    assert router.memory.age.max() <= 10.0
    # Of four processors an answer is used once: 2 / ((1 - 16/4) 3 - 1) is below 1.
    router.memory = pool
    router.act(gap=0.0, present=[0, 0, 0, 0])
    ages = router.memory.age[router.memory.processor >= 0]
    assert (ages > 0).sum() == 1  # one was used, one removed, one is left of three


def test_jbt_goes_where_few_were_reported():
    router = Router("jbt", speed=(1.0,) * 4, threshold=1)
    router.answer(2, queue_length=2)
    assert not router.memory.any()
    router.answer(3, queue_length=1)
    assert router.act() == 3 and not router.memory.any()
    assert len({router.act(seed=seed) for seed in range(20)}) == 4  # any


def test_reports_go_to_any_or_to_the_one_that_holds_fewer():
    memories = jnp.asarray([[True, True], [False, False], [True, False]])
    word = jnp.arange(60_000, dtype=jnp.uint32) * jnp.uint32(2654435761)
    counts = np.bincount(np.asarray(jax.vmap(lambda w: fleets._any(memories, w))(word)), minlength=3)
    np.testing.assert_allclose(counts, 20_000, rtol=0.03)
    counts = np.bincount(np.asarray(jax.vmap(lambda w: fleets._shorter(memories, w))(word)), minlength=3)
    # Of nine pairs, the one with none is in five, the one with one in three more, the one with two in one.
    np.testing.assert_allclose(counts / 60_000, [1 / 9, 5 / 9, 3 / 9], rtol=0.05)


def test_lsq_reckons_and_refreshes():
    router = Router("lsq", speed=(1.0,) * 3)
    assert sorted(router.act(seed=seed) for seed in range(3)) == [0, 1, 2]
    router.answer(1, queue_length=0)
    assert router.act() == 1
    router.answer(0, queue_length=3)
    assert router.memory.tolist() == [1, 1, 1]
    asking = Router("lsq", speed=(1.0,) * 3, ask=3)
    first = asking.act(present=[5, 6, 7])
    expected = [5, 6, 7]
    expected[first] += 1
    assert asking.memory.tolist() == expected


def test_tidal_water_fills_the_shortest_queues():
    router = Router("tidal", speed=(1.0,) * 4, dispatchers=6)
    # Six tasks on queues 0, 1, 5, 9: the level is (6 + 0 + 1) / 2 = 3.5: 3.5 to 2.5.
    keys = jax.random.split(jax.random.key(0), 6000)
    seen = observation([0.0] * 4, queue_length=[0, 1, 5, 9])
    chosen = jax.vmap(lambda key: router.scheduler.act((), router.memory, seen, key)[0])(keys)
    counts = np.bincount(np.asarray(chosen), minlength=4)
    np.testing.assert_allclose(counts, [3500, 2500, 0, 0], atol=155)
    # A second task on the same figures: twelve, the level is (12 + 6) / 3 = 6.
    old = seen.replace(age=jnp.float32(2.0), gap=jnp.float32(1.0))
    after = router.memory.replace(number=jnp.float32(1.0))
    chosen = jax.vmap(lambda key: router.scheduler.act((), after, old, key)[0])(keys)
    counts = np.bincount(np.asarray(chosen), minlength=4)
    np.testing.assert_allclose(counts, [3000, 2500, 500, 0], atol=155)


def test_slow_start_gives_little_to_one_that_has_come_up():
    router = Router("slow-start", window=100.0)
    assert np.bincount([router.act(gap=1.0) for _ in range(10)]).tolist() == [5, 5]
    router.act(gap=1.0, up=[True, False])
    # From 1 to 40 of 100 time units: its share grows from 0.1 to 0.4 of the other's, about a fifth of that.
    chosen = [router.act(gap=1.0) for _ in range(40)]
    assert 6 <= sum(chosen) <= 9


def test_replicas_count_those_that_wait_more():
    env, params = jaxlb.make(speed=[1.0, 1.0], load=0.5, discipline="fcfs", slots=4)
    rule = jaxlb.scheduler("replicas")
    memory = rule.start(env, params, ())

    def choose(lengths):
        seen = observation([0.0, 0.0], queue_length=lengths)
        return int(rule.act((), memory, seen, jax.random.key(0))[0])

    assert choose([4, 3]) == 1
    assert choose([6, 4]) == 1  # 4 x 2 + 4 against 4


@pytest.mark.parametrize("name", small.mostly_slow(ROUTERS, ["c3"]))
def test_all_run_with_failures_limits_and_several_dispatchers(name):
    """With strict types, in lanes, and no choice of a processor that is down where others are up."""
    env, params = jaxlb.make("failures", num_processors=3, dispatchers=2, limit=6)
    summary = jaxlb.rollout(env, params, name, jax.random.key(0), 4, 200)
    assert np.isfinite(summary.mean_completion).all()
    assert (np.asarray(summary.class_served).sum(0) > 150).all()


def test_bad_options_are_refused():
    for name, options, words in (
        ("peak-ewma", {"time_constant": 0.0}, "time_constant"),
        ("peak-ewma", {"peaks": 1}, "peaks = 1: must be True or False"),
        ("least-request", {"d": 0}, "d = 0"),
        ("c3", {"alpha": 2.0}, "alpha"),
        ("bounded-loads", {"factor": 0.5}, "factor"),
        ("jbt", {"told": "all"}, "told"),
        ("slow-start", {"window": -1.0}, "window"),
    ):
        with pytest.raises(ValueError, match=words):
            jaxlb.scheduler(name, **options)
