"""Gaps, sizes, priorities and deadlines against the formulas of the processes they claim to be.

Statistical checks use fixed keys and 5 standard errors: a true sampler would fail one in two million.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from scipy import stats

import jaxlb
from jaxlb import theory, workload
from jaxlb.params import with_lane_axis
from jaxlb.random import fold_in, random_words, split
from jaxlb.workload import arrivals, sizes
from tests import small

LANES, TASKS = 2000, 1000


def sample(arrival, size=None, seed=0, num_tasks=TASKS, **overrides):
    """Tasks `[T, N]` of a workload with rate 1 unless overridden."""
    size = sizes.Exponential() if size is None else size
    _, params = jaxlb.make("stable", speed=[1.0], load=0.5, arrival=arrival, size=size, **overrides)
    params = params.replace(load=params.size.mean())  # rate = load x speed / mean size = 1

    params = with_lane_axis(params, (LANES,))
    draw = jax.jit(workload.sample, static_argnames=("num_tasks", "lanes"))
    return jax.tree.map(np.asarray, draw(jax.random.key(seed), params, num_tasks, (LANES,)))


def assert_mean(samples, expected, what):
    """The mean over all tasks, its error estimated from independent lanes `[T, N]`."""
    lanes = samples.mean(0, dtype=np.float64)
    error = lanes.std(ddof=1) / np.sqrt(len(lanes))
    assert abs(lanes.mean() - expected) < 5 * error + 1e-6, (what, lanes.mean(), expected, error)


def lag_one(gaps):
    """Product of neighbouring deviations from the mean gap 1."""
    return (gaps[1:] - 1.0) * (gaps[:-1] - 1.0)


PROCESSES = {
    # process: squared coefficient of variation, lag-1 autocorrelation
    "poisson": (arrivals.Poisson(), 1.0, 0.0),
    "constant": (arrivals.Renewal(0.0), 0.0, 0.0),
    "erlang-8": (arrivals.Renewal(0.125), 0.125, 0.0),
    "erlang-3": (arrivals.Renewal(1 / 3), 1 / 3, 0.0),
    "erlang-mixture": (arrivals.Renewal(0.4), 0.4, 0.0),
    "renewal-poisson": (arrivals.Renewal(1.0), 1.0, 0.0),
    "hyperexponential": (arrivals.Renewal(6.0), 6.0, 0.0),
    "bursty": (arrivals.Bursty(10.0, 0.1, 20.0), *theory.mmpp_gaps(10.0, 0.1, 20.0)),
    "bursty-slow": (arrivals.Bursty(3.0, 0.5, 6.0), *theory.mmpp_gaps(3.0, 0.5, 6.0)),
    "drift": (arrivals.Drift(0.3, 5.0), *theory.drift_gaps(0.3, 5.0)),
    "batch": (arrivals.Batch(4.0), 2 * 4.0 - 1, 0.0),
}


KINDS = ["constant", "erlang-mixture", "hyperexponential", "bursty", "drift", "batch"]


@pytest.mark.parametrize("name", small.mostly_slow(PROCESSES, KINDS))
def test_gaps_have_the_moments_of_their_process(name):
    process, squared_cv, autocorrelation = PROCESSES[name]
    gaps = sample(process).gap.astype(np.float64)
    assert gaps.min() >= 0
    assert_mean(gaps, 1.0, "mean gap")
    assert_mean((gaps - 1.0) ** 2, squared_cv, "squared coefficient of variation")
    assert_mean(lag_one(gaps), autocorrelation * squared_cv, "lag-1 autocovariance")


def test_renewal_gaps_have_the_erlang_law():
    gaps = sample(arrivals.Renewal(0.25)).gap
    assert stats.kstest(gaps[::10].ravel(), stats.gamma(4, scale=0.25).cdf).pvalue > 1e-4


def test_bursty_gaps_have_the_law_of_a_simulated_mmpp():
    # An event-by-event simulation of the two phases, against the closed form that the workload samples.
    rng = np.random.default_rng(0)
    process = arrivals.Bursty(10.0, 0.2, 8.0)
    high, low, from_high, from_low = (float(rate) for rate in process._unit_rates())
    gaps, since, is_high = [], 0.0, True
    while len(gaps) < 200_000:
        arrive, leave = (high, from_high) if is_high else (low, from_low)
        since += rng.exponential(1.0 / (arrive + leave))
        if rng.random() < arrive / (arrive + leave):
            gaps.append(since)
            since = 0.0
        else:
            is_high = not is_high
    ours = sample(process).gap[::20]
    # Thinned so that dependence does not count.
    assert stats.ks_2samp(gaps[::20], ours.ravel()).pvalue > 1e-4


def test_diurnal_gaps_turn_into_a_unit_poisson_process_of_integrated_rate():
    amplitude, period = 0.9, 50.0
    process = arrivals.Diurnal(amplitude, period)
    phase = jax.random.uniform(jax.random.key(0), (10_000,), maxval=2 * np.pi)
    uniform = jax.random.uniform(jax.random.key(1), (10_000,), minval=1e-7)
    gap, after = jax.jit(lambda phase, uniform: process.gap(phase, 1.0, uniform, None))(phase, uniform)
    gap, start, omega = np.asarray(gap, np.float64), np.asarray(phase, np.float64), 2 * np.pi / period
    integral = gap + amplitude / omega * (np.cos(start) - np.cos(start + omega * gap))
    np.testing.assert_allclose(integral, -np.log(np.asarray(uniform, np.float64)), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(np.cos(after), np.cos(start + omega * gap), atol=1e-5)
    assert_mean(sample(process).gap.astype(float), 1.0, "mean gap")


def test_shift_keeps_the_long_run_means_and_changes_regime():
    process = arrivals.Shift(regime_tasks=20.0, rate_spread=2.0, large_fraction=0.2, large_factor=5.0)
    tasks = sample(process, num_tasks=3000)
    assert_mean(tasks.gap.astype(float), 1.0, "mean gap")
    assert_mean(tasks.size.astype(float), 1.0, "mean size")
    squared_cv, autocorrelation = theory.shift_gaps(20.0, 2.0)
    assert_mean(lag_one(tasks.gap.astype(float)), autocorrelation * squared_cv, "lag-1 autocovariance")


LAWS = {
    "exponential": (sizes.Exponential(2.0), stats.expon(scale=2.0)),
    "uniform": (sizes.Uniform(0.5, 3.0), stats.uniform(0.5, 2.5)),
    "lognormal": (sizes.LogNormal(2.0, 3.0), stats.lognorm(np.sqrt(np.log(4.0)), scale=2.0 / np.sqrt(4.0))),
    "bounded-pareto": (sizes.BoundedPareto(1.0, 1000.0, 1.5), stats.truncpareto(1.5, 1000.0)),
    "bounded-pareto-1": (sizes.BoundedPareto(1.0, 100.0, 1.0), stats.truncpareto(1.0, 100.0)),
    "pareto": (sizes.BoundedPareto(100.0, np.inf, 2.5), stats.pareto(2.5, scale=100.0)),
}


@pytest.mark.parametrize("name", LAWS)
def test_sizes_follow_their_law(name):
    law, exact = LAWS[name]
    drawn = sample(arrivals.Poisson(), law).size
    np.testing.assert_allclose(law.mean(), exact.mean(), rtol=1e-5)
    np.testing.assert_allclose(law.second_moment(), exact.moment(2), rtol=1e-4)
    assert stats.kstest(drawn[::2].ravel().astype(float), exact.cdf).pvalue > 1e-4
    u = np.array([0.999, 0.9, 0.5, 0.1, 1e-3, 1e-6])
    np.testing.assert_allclose(law.inverse_survival(jnp.asarray(u, jnp.float32)), exact.isf(u), rtol=1e-4)


@pytest.mark.parametrize(
    ("law", "mean", "second"),
    [
        (sizes.Deterministic(3.0), 3.0, 9.0),
        (sizes.Hyperexponential(2.0, 5.0), 2.0, 24.0),
        (sizes.Bimodal(1.0, 11.0, 0.2), 3.0, 25.0),
    ],
)
def test_moments_of_the_other_laws(law, mean, second):
    np.testing.assert_allclose([law.mean(), law.second_moment()], [mean, second], rtol=1e-6)
    drawn = sample(arrivals.Poisson(), law).size.astype(float)
    assert_mean(drawn, mean, "mean")
    assert_mean(drawn**2, second, "second moment")


def test_hyperexponential_sizes_follow_the_mixture():
    drawn = sample(arrivals.Poisson(), sizes.Hyperexponential(1.0, 5.0)).size
    p = 0.5 * (1 + np.sqrt(4 / 6))
    mixture = lambda x: p * -np.expm1(-2 * p * x) + (1 - p) * -np.expm1(-2 * (1 - p) * x)  # noqa: E731
    assert stats.kstest(drawn[::2].ravel().astype(float), mixture).pvalue > 1e-4


def test_gap_size_and_priority_are_independent_and_priorities_have_their_shares():
    shares = np.array([0.2, 0.3, 0.5])
    tasks = sample(arrivals.Poisson(), class_probability=shares, class_slack=[1.0, 2.0, 3.0])
    for index, share in enumerate(shares):
        assert_mean((tasks.priority == index).astype(float), share, "share")
    for one, other in [(tasks.gap, tasks.size), (tasks.gap, tasks.priority), (tasks.size, tasks.priority)]:
        one, other = (x.astype(float) - x.mean() for x in (one, other))
        assert_mean(one * other / (one.std() * other.std()), 0.0, "correlation")
    np.testing.assert_allclose(tasks.deadline, (tasks.priority + 1.0) * tasks.size, rtol=1e-6)


def test_deadlines_scale_with_mean_speed_and_add_the_constant(key):
    _, params = jaxlb.make("heavy-tail", deadline_constant=2.0)
    task, _ = workload.draw(key, params, workload.start(key, params))
    np.testing.assert_allclose(task.deadline, 4.0 * task.size / 1.125 + 2.0, rtol=1e-6)


def test_the_rate_follows_from_the_load():
    _, params = jaxlb.make("heavy-tail", load=0.6)
    mean = float(params.size.mean())
    np.testing.assert_allclose(workload.arrival_rate(params), 0.6 * 4.5 / mean, rtol=1e-6)


def test_a_lane_does_not_depend_on_the_number_of_lanes(key):
    few, many = random_words(key, (3,)), random_words(key, (1000,))
    np.testing.assert_array_equal(few[0], many[0][:3])
    np.testing.assert_array_equal(few[1], many[1][:3])
    single = random_words(key, ())
    assert (single[0], single[1]) == (few[0][0], few[1][0])


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("lanes", [(), (1,), (1000,)])
def test_random_words_are_those_of_the_split_keys(implementation, lanes):
    for seed in range(20):
        key = jax.random.key(seed * 0x9E3779B9 % 2**32, impl=implementation)
        split = jax.random.key_data(jax.random.split(key, lanes[0] if lanes else 1))
        for word, half in zip(random_words(key, lanes), (split[:, 0], split[:, 1]), strict=True):
            np.testing.assert_array_equal(word, half.reshape(lanes))


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_keys_split_as_jax_splits_them(implementation):
    key = jax.random.key(7, impl=implementation)
    for ours, theirs in zip(split(key, 4), jax.random.split(key, 4), strict=True):
        assert ours == theirs
    for number in (0, 7, 2**31 - 1):
        assert fold_in(key, jnp.int32(number)) == jax.random.fold_in(key, number)
    many = jax.random.split(key, 5)
    together = jax.jit(jax.vmap(lambda key: jnp.stack(split(key, 3))))(many)
    for row, one in zip(together, many, strict=True):
        assert (row == jax.random.split(one, 3)).all()


def test_random_words_are_uniform_and_independent(key):
    first, second = (np.asarray(word, np.uint32) for word in random_words(key, (2**18,)))
    for word in (first, second, first ^ second, first ^ np.roll(second, 1)):
        bits = ((word[:, None] >> np.arange(32, dtype=np.uint32)) & 1).mean(0)
        assert np.abs(bits - 0.5).max() < 5 * 0.5 / np.sqrt(len(word))
        counts = np.bincount(word >> 24, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_parameters_of_a_process_are_vmapped_by_one_program(key):
    _, params = jaxlb.make("stable", arrival=arrivals.Renewal())
    squared_cvs = jnp.array([0.0, 0.2, 1.0, 4.0])

    def gap(squared_cv):
        process = params.arrival.replace(squared_cv=squared_cv)
        return process.gap((), 1.0, jnp.full((5,), 0.3), jnp.full((8, 5), 0.4))[0]

    together = jax.vmap(gap)(squared_cvs)
    for index, squared_cv in enumerate(squared_cvs):
        np.testing.assert_allclose(together[index], gap(squared_cv), rtol=1e-6)


class Wrong(sizes.Law):
    """A law of sizes in which something is wrong, whatever `wrong` says."""

    wrong: str = struct.field(pytree_node=False, default="")

    def check(self):
        pass

    def mean(self):
        return jnp.float32(1.0)

    def second_moment(self):
        return jnp.float32(2.0)

    def inverse_survival(self, uniform):
        return {
            "": -jnp.log(uniform),
            "negative": uniform - 0.5,
            "one": uniform.sum(),
            "infinite": 1.0 / (uniform - 0.5),
        }[self.wrong]


class Misspelt(Wrong):
    """A law of sizes whose mean is a number."""

    mean: float = 1.0


class NoDataclass:
    """A law of sizes that JAX cannot look into."""

    check, mean, second_moment, inverse_survival = Wrong.check, Wrong.mean, Wrong.second_moment, Wrong.mean


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (Wrong("negative"), r"its inverse_survival of .* is \[.*\], must be as many sizes"),
        (Wrong("one"), "its inverse_survival of .* is 2.5, must be as many sizes"),
        (Wrong("infinite"), "its inverse_survival of .*inf"),
        (Wrong, r"size = .*: is no size law: it is a class; try Wrong\(\)"),
        (
            arrivals.Bursty(),
            "size = .*: is no size law: it has no inverse_survival\\(\\), mean\\(\\), second_moment",
        ),
        (None, "size = None: is no size law"),
        (Misspelt(), r"size = .*: is no size law: it has no mean\(\)$"),
        (NoDataclass(), "size = .*: is no size law: it is no dataclass"),
    ],
)
def test_what_is_no_law_of_sizes_is_refused(size, message):
    with pytest.raises(ValueError, match=message):
        jaxlb.make("stable", size=size)


def test_a_law_of_ones_own_is_checked_within_a_program_too(key):
    env, params = jaxlb.make("stable", size=Wrong())
    found = jax.jit(lambda key: jaxlb.rollout(env, params, "lwr", key, 2, 10))(key)
    assert np.isfinite(found.mean_completion).all()
    with pytest.raises(ValueError, match="its inverse_survival of"):
        jax.jit(lambda key: jaxlb.rollout(env, params.replace(size=Wrong("one")), "lwr", key, 2, 10))(key)
