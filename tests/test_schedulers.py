"""Every rule on states where its choice is known, and on systems whose mean response is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import interpolate, stats

import jaxlb
from jaxlb import theory, workload
from jaxlb.env import with_lane_axis
from jaxlb.scheduling import as_scheduler, optimal
from jaxlb.scheduling.size_based import load_cutoffs
from jaxlb.workload import sizes


def observation(wait, speed=None, queue_length=None, size=1.0, load=None):
    """An observation of one lane."""
    wait = jnp.asarray(wait, jnp.float32)
    speed = jnp.ones_like(wait) if speed is None else jnp.asarray(speed, jnp.float32)
    load = wait * speed if load is None else jnp.asarray(load, jnp.float32)
    queue_length = (
        jnp.zeros(wait.shape, jnp.int32) if queue_length is None else jnp.asarray(queue_length, jnp.int32)
    )
    size, zero = jnp.float32(size), jnp.float32(0.0)
    return jaxlb.Observation(
        gap=zero,
        size=size,
        priority=jnp.int32(0),
        deadline=zero,
        load_average=load.mean(),
        load_variance=load.var(),
        queue_length=queue_length,
        load=load,
        wait=wait,
        speed=speed,
        age=zero,
        assigned=jnp.zeros_like(wait),
        truth=jaxlb.types.Truth(size=size, wait=wait, speed=speed),
    )


def params_of(speed, **overrides):
    _, params = jaxlb.make("heavy-tail", speed=list(speed), **overrides)
    return params


def choose(name, seen, params=None, memory=None, key=None, **options):
    """One choice of a scheduler; its memory starts fresh unless given."""
    scheduler = jaxlb.scheduler(name, **options)
    params = params_of(np.asarray(seen.speed)) if params is None else params
    env, _ = jaxlb.make("heavy-tail", num_processors=len(seen.speed))
    memory = scheduler.start(env, params, ()) if memory is None else memory
    action, memory = scheduler.act(
        scheduler.variables, memory, seen, jax.random.key(0) if key is None else key
    )
    assert action.dtype == jnp.int32 and action.shape == ()
    return int(action), memory


@pytest.mark.parametrize(
    ("name", "seen", "expected"),
    [
        ("jsq", {"wait": [0, 0, 0], "queue_length": [3, 1, 1]}, 1),
        ("least-connections", {"wait": [0, 0, 0], "queue_length": [3, 2, 2], "speed": [2, 1, 0.5]}, 0),
        ("least-connections", {"wait": [0, 0], "queue_length": [2, 1], "speed": [2, 1]}, 0),  # tie: fastest
        ("sed", {"wait": [0, 0], "queue_length": [2, 0], "speed": [2, 1]}, 1),
        ("sed", {"wait": [0, 0], "queue_length": [1, 0], "speed": [2, 1]}, 0),  # tie: fastest
        ("lwr", {"wait": [0, 0, 0], "load": [4, 1, 1], "speed": [8, 2, 2]}, 0),  # tie: lowest index
        ("lwr", {"wait": [9, 0], "load": [1, 4], "speed": [1, 5]}, 1),
        ("lwl", {"wait": [2, 1, 1], "speed": [9, 1, 2]}, 2),  # tie: fastest
        ("greedy", {"wait": [1, 0], "speed": [4, 0.5], "size": 1.0}, 0),
        ("greedy", {"wait": [1, 0], "speed": [4, 0.5], "size": 0.1}, 1),
        ("greedy", {"wait": [0, 0, 0], "speed": [1, 2, 2], "size": 1.0}, 1),
        ("oracle", {"wait": [1, 0], "speed": [4, 0.5], "size": 1.0}, 0),
        ("lwr-rr", {"wait": [0, 0, 0], "load": [5, 1, 4]}, 1),
        ("lwr-rr", {"wait": [0, 0, 0], "load": [5, 1, 1.05]}, 0),  # too close to call: the turn is 0's
    ],
)
def test_choices(name, seen, expected):
    assert choose(name, observation(**seen))[0] == expected


def test_jsq_ties_can_go_to_the_fastest_or_be_split_evenly():
    seen = observation([0, 0, 0], queue_length=[1, 1, 2], speed=[1, 2, 3])
    assert choose("jsq", seen)[0] == 0
    assert choose("jsq", seen, ties="fastest")[0] == 1
    keys = jax.random.split(jax.random.key(1), 2000)
    scheduler = jaxlb.scheduler("jsq", ties="random")
    picked = np.asarray(jax.vmap(lambda key: scheduler.act(scheduler.variables, (), seen, key)[0])(keys))
    assert set(picked.tolist()) == {0, 1}
    assert stats.binomtest(int(picked.sum()), len(picked)).pvalue > 1e-4


def frequencies(name, seen, count=6000, **options):
    """How often each processor is chosen."""
    scheduler = jaxlb.scheduler(name, **options)
    keys = jax.random.split(jax.random.key(2), count)
    picked = jax.vmap(lambda key: scheduler.act(scheduler.variables, (), seen, key)[0])(keys)
    return np.bincount(np.asarray(picked), minlength=len(seen.speed))


@pytest.mark.parametrize(
    ("name", "seen", "shares"),
    [
        ("random", {"wait": [0, 0, 0, 0], "speed": [1, 2, 3, 4]}, [0.25] * 4),
        ("weighted-random", {"wait": [0, 0, 0, 0], "speed": [1, 2, 3, 4]}, [0.1, 0.2, 0.3, 0.4]),
        ("jiq", {"wait": [0] * 4, "speed": [1, 2, 3, 4], "queue_length": [0, 1, 0, 5]}, [0.25, 0, 0.75, 0]),
        ("jiq", {"wait": [0] * 4, "speed": [1, 2, 3, 4], "queue_length": [2, 1, 1, 5]}, [0.1, 0.2, 0.3, 0.4]),
        # Two samples with replacement: the shortest is missed with probability (2/3)^2.
        ("power-of-d", {"wait": [0] * 3, "queue_length": [0, 1, 2]}, [5 / 9, 3 / 9, 1 / 9]),
    ],
)
def test_random_rules_choose_with_their_probabilities(name, seen, shares):
    counts, shares = frequencies(name, observation(**seen)), np.array(shares)
    assert (counts[shares == 0] == 0).all()
    possible = shares > 0
    assert stats.chisquare(counts[possible], shares[possible] * counts.sum()).pvalue > 1e-4


def turns(name, speed, count):
    seen, memory, picked = observation([0.0] * len(speed), speed=speed), None, []
    for _ in range(count):
        action, memory = choose(name, seen, memory=memory)
        picked.append(action)
    return picked


def test_round_robin_takes_turns():
    assert turns("rr", [1, 5, 1], 7) == [0, 1, 2, 0, 1, 2, 0]


def test_weighted_round_robin_is_smooth():
    # The published example of nginx's smooth algorithm: weights 5, 1, 1.
    assert turns("wrr", [5, 1, 1], 7) == [0, 0, 1, 0, 2, 0, 0]
    assert np.bincount(turns("wrr", [0.5, 0.8, 1.2, 2.0], 90)).tolist() == [10, 16, 24, 40]


@pytest.mark.parametrize(
    "law",
    [
        sizes.Exponential(2.0),
        sizes.BoundedPareto(1.0, 1000.0, 1.5),
        sizes.Uniform(1.0, 2.0),
        sizes.LogNormal(),
    ],
)
def test_load_cutoffs_split_the_work(law):
    fractions = np.array([0.1, 0.5, 0.9])
    cutoffs = np.asarray(load_cutoffs(law, jnp.asarray(fractions, jnp.float32)), np.float64)
    # Work below a cutoff, by a fine quadrature of our own over the survival probability.
    survival = np.concatenate(
        [(np.arange(200_000) + 0.5) / 200_000 * 0.999 + 0.001, np.geomspace(1e-7, 1e-3, 4000)]
    )
    survival = np.sort(survival)[::-1]
    size = np.asarray(law.inverse_survival(jnp.asarray(survival, jnp.float32)), np.float64)
    work = np.concatenate([[0.0], np.cumsum(0.5 * (size[1:] + size[:-1]) * -np.diff(survival))])
    np.testing.assert_allclose(np.interp(cutoffs, size, work) / float(law.mean()), fractions, atol=2e-3)


@pytest.mark.parametrize(
    "law",
    [sizes.Hyperexponential(1.0, 10.0), sizes.Bimodal(1.0, 21.0, 0.1)],
    ids=["hyperexponential", "bimodal"],
)
def test_load_cutoffs_of_mixtures_split_the_work(law):
    # Their inverse is not monotone: a cutoff must be found among the sizes, not among the uniforms.
    cutoff = float(load_cutoffs(law, jnp.array([0.5]))[0])
    uniform = jnp.asarray((np.arange(1_000_000) + 0.5) / 1e6, jnp.float32)
    drawn = np.asarray(law.inverse_survival(uniform), np.float64)
    below, upto = (drawn[mask].sum() / drawn.sum() for mask in (drawn < cutoff, drawn <= cutoff))
    assert below - 2e-3 <= 0.5 <= upto + 2e-3


def test_sita_e_reproduces_the_textbook_cutoff():
    # Equal load on four processors, Pareto of mean 1 up to 10^3, tail index 1.5: first cutoff 0.5964.
    law = sizes.BoundedPareto(0.339589, 1000.0, 1.5)
    np.testing.assert_allclose(law.mean(), 1.0, rtol=1e-5)
    exact, _ = theory.sita_e(0.8, 4, 1.5, 0.339589, 1000.0)
    np.testing.assert_allclose(exact[0], 0.5964, atol=5e-5)
    np.testing.assert_allclose(load_cutoffs(law, jnp.array([0.25, 0.5, 0.75])), exact, rtol=5e-4)


def test_sita_sends_small_tasks_to_the_slow_end_and_big_ones_to_the_fast():
    speed = [2.0, 0.5, 1.0]
    picked = [
        choose("sita-e", observation([0, 0, 0], speed=speed, size=size))[0] for size in (1.0, 2.0, 900.0)
    ]
    assert picked == [1, 2, 0]
    picked = choose("sita-e", observation([0, 0, 0], speed=speed, size=900.0), small_to="fastest")
    assert picked[0] == 1


def test_guarded_sita_keeps_big_tasks_off_all_but_the_guarded_processors():
    seen = {"wait": [50.0, 0.0, 0.0], "speed": [0.5, 1.0, 2.0]}
    assert choose("guarded-sita", observation(**seen, size=1.0))[0] == 2
    assert choose("guarded-sita", observation(**seen, size=900.0))[0] == 0
    assert choose("guarded-sita", observation(**seen, size=900.0), big=2)[0] == 1
    assert choose("guarded-sita", observation(**seen, size=900.0), big_to="fastest")[0] == 2


def carried(law, speed, load, name, **options):
    """Of the work of a law's tasks: the share of each size, and of each processor; and mean completions."""
    _, params = jaxlb.make("heavy-tail", speed=list(speed), load=load, size=law)
    env, _ = jaxlb.make("heavy-tail", speed=list(speed))
    tasks = workload.sample(jax.random.key(3), with_lane_axis(params, (8,)), 2000, (8,))
    outcome = jaxlb.replay(env, params, jaxlb.scheduler(name, **options), tasks, jax.random.key(0))
    size, action = (np.asarray(leaf).ravel() for leaf in (tasks.size, outcome.action))
    work = np.bincount(action, size, minlength=len(speed)) / size.sum()
    return size, action, work, float(outcome.completion.mean())


def logged(limit_share):
    """A recorded log: sizes that spread, and a time limit that many tasks reach."""
    spread = np.geomspace(1.0, 50.0, 900, dtype=np.float32)
    at_limit = round(limit_share / (1.0 - limit_share) * spread.sum() / 60.0)
    return sizes.Empirical(jnp.asarray([*[60.0] * at_limit, *spread[::-1]], jnp.float32))


ATOMS = {
    # Largest sizes that bring a quarter and a third of the work, where a quarter belongs to the guarded.
    "bimodal, 1/4": (sizes.Bimodal(1.0, 30.0, 1 / 91), 30.0),
    "a log, 1/4": (logged(0.25), 60.0),
    "a log, 0.15": (logged(0.15), 60.0),
    "bimodal, 0.3": (sizes.Bimodal(1.0, 30.0, 1 / 71), 30.0),
}


@pytest.mark.parametrize("name", ATOMS)
def test_the_largest_size_may_be_an_atom_that_guarded_sita_guards_from(name):
    """`size > cutoff` would never be true of it, and the rule would be greedy."""
    law, largest = ATOMS[name]
    speed = [1.0, 1.0, 1.0, 1.0]
    size, action, _, _ = carried(law, speed, 0.6, "guarded-sita")
    assert (action[size == largest] == 0).all() and (action[size < 0.9 * largest] > 0).any()
    _, greedily, _, _ = carried(law, speed, 0.6, "greedy")
    assert (greedily[size == largest] > 0).any()


def test_of_an_atom_at_the_limit_the_nearer_side_is_taken():
    # Sizes of 1, 2 and 4 that bring 40, 30 and 30 % of the work, on two guarded processors of five.
    law = sizes.Empirical(jnp.asarray([4.0] * 30 + [2.0] * 60 + [1.0] * 160))
    env, _ = jaxlb.make("heavy-tail", num_processors=5)

    def limit(params, **options):
        return float(jaxlb.scheduler("guarded-sita", **options).start(env, params, ())[0])

    params = params_of([1.0] * 5, load=0.5, size=law)
    for share, big in [(0.7, 4.0), (1.0, 4.0), (1.3, 2.0), (1.8, 2.0)]:
        larger = [size for size in (1.0, 2.0, 4.0) if size > limit(params, big=2, share=share)]
        assert larger[0] == big, share
    # What the guarded processors could not do they are not given: 30 % on a fifth of the speed at load 0.8.
    heavy = params_of([1.0] * 5, load=0.8, size=law)
    assert limit(heavy) >= 4.0
    # Nor does anything follow from a size that all tasks have.
    same = params_of([1.0] * 5, size=sizes.Deterministic(3.0))
    assert limit(same) >= 3.0


@pytest.mark.parametrize(
    "law", [sizes.Deterministic(1.0), sizes.Bimodal(1.0, 10.0, 0.1), logged(0.4)], ids=str
)
@pytest.mark.parametrize("name", ["sita-e", "card"])
def test_no_processor_is_left_out_where_many_tasks_are_of_one_size(name, law):
    """Nor is any given more than it can do: at load 0.9 queues stay short."""
    speed = [1.0, 1.0, 2.0, 1.0]
    _, _, work, completion = carried(law, speed, 0.9, name)
    assert (work > 0.05).all()
    *_, greedy = carried(law, speed, 0.9, "greedy")
    assert completion < 2.0 * greedy


def test_where_a_size_belongs_to_one_interval_sita_e_goes_by_size_alone():
    params = params_of([2.0, 0.5, 1.0])
    cutoffs = np.asarray(load_cutoffs(params.size, jnp.cumsum(jnp.array([0.5, 1.0])) / 3.5))
    for size, place in [(0.99 * cutoffs[0], 1), (1.01 * cutoffs[0], 2), (1.01 * cutoffs[1], 0)]:
        waits = np.where(np.arange(3) == place, 1e4, 0.0)  # the one it belongs to is busy
        assert choose("sita-e", observation(waits, speed=[2.0, 0.5, 1.0], size=size))[0] == place


def test_fpi_weighs_the_harm_to_later_tasks():
    # Speeds 1 and 3, equal completion 4: the cost to later tasks, l_i ((w + x)^2 - w^2), decides.
    params = params_of([1.0, 3.0], load=0.8)
    weight = 0.8 * np.array([1.0, 3.0]) / float(params.size.mean()) / (2 * 0.2)
    for size, waits in [(3.0, [1.0, 3.0]), (3.0, [1.0, 3.2]), (30.0, [0.0, 22.0])]:
        completion = np.array(waits) + size / np.array([1.0, 3.0])
        cost = completion + weight * (completion**2 - np.array(waits) ** 2)
        seen = observation(waits, speed=[1.0, 3.0], size=size)
        assert choose("fpi", seen, params=params)[0] == int(np.argmin(cost))


def test_card_follows_its_definition():
    params = params_of([1.0, 1.0])
    small, large = (float(x) for x in load_cutoffs(params.size, jnp.array([0.4, 0.6])))
    medium = 0.5 * (small + large)
    limit = 2.0 * float(params.size.mean())  # the default threshold, at speed 1
    long, short = 0, 1
    for size, short_wait, expected in [
        (0.9 * small, 100.0, short),
        (1.1 * large, 0.0, long),
        (medium, 0.9 * limit, short),
        (medium, 1.1 * limit, long),
    ]:
        seen = observation([5.0, short_wait], size=size)
        assert choose("card", seen, params=params)[0] == expected
    assert choose("card", observation([1.0], speed=[1.0]))[0] == 0


@pytest.mark.parametrize("name", [name for name in jaxlb.schedulers() if name != "optimal"])
def test_lanes_decide_alone_and_memory_keeps_its_types(name, key):
    """Lane n of many chooses as it would alone; works under vmap and scan."""
    env, params = jaxlb.make("heavy-tail")
    scheduler = jaxlb.scheduler(name)
    rng = np.random.default_rng(0)
    lanes = 6
    many = observation(
        rng.exponential(5.0, (4, lanes)), speed=np.tile([[0.5], [0.8], [1.2], [2.0]], (1, lanes))
    )
    many = many.replace(
        size=jnp.asarray(rng.pareto(1.5, lanes) + 1.0, jnp.float32),
        queue_length=jnp.asarray(rng.integers(0, 4, (4, lanes)), jnp.int32),
    )
    many = many.replace(truth=many.truth.replace(size=many.size))
    memory = scheduler.start(env, with_lane_axis(params, (lanes,)), (lanes,))
    action, after = scheduler.act(scheduler.variables, memory, many, key)
    assert action.shape == (lanes,) and action.dtype == jnp.int32
    assert int(action.min()) >= 0 and int(action.max()) < 4
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), memory, after)
    if name not in ("random", "weighted-random", "jiq", "power-of-d", "hedge"):
        for lane in range(lanes):
            one = jax.tree.map(lambda leaf, lane=lane: leaf[..., lane] if leaf.ndim else leaf, many)
            alone, _ = scheduler.act(scheduler.variables, scheduler.start(env, params, ()), one, key)
            assert int(alone) == int(action[lane])


def test_names_and_options_are_checked():
    with pytest.raises(ValueError, match="unknown scheduler 'lrw'; did you mean"):
        jaxlb.scheduler("lrw")
    with pytest.raises(ValueError, match=r"unknown option of scheduler 'power-of-d' 'k'"):
        jaxlb.scheduler("power-of-d", k=2)
    with pytest.raises(ValueError, match="d = 0: must be a whole number of at least 1"):
        jaxlb.scheduler("power-of-d", d=0)
    with pytest.raises(ValueError, match=r"share = -1: must be above 0"):
        jaxlb.scheduler("guarded-sita", share=-1)


def test_options_may_be_in_the_name():
    named = jaxlb.scheduler("guarded-sita(big=2, big_to=fastest,share=0.8)")
    assert named == jaxlb.scheduler("guarded-sita", big=2, big_to="fastest", share=0.8)
    assert named == jaxlb.scheduler("guarded-sita(big=2)", big_to="fastest", share=0.8)
    assert jaxlb.scheduler("lwr()") == jaxlb.scheduler("lwr")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("guarded-sita(big=0)", "big = 0: must be a whole number of at least 1"),
        ("guarded-sita(big=two)", "big = 'two': must be a whole number of at least 1"),
        ("guarded-sita(big=[1, 2])", r"big = \(1, 2\): must be a whole number"),
        ('guarded-sita(big={"a": 1})', "big = {'a': 1}: must be a number, a word or a tuple"),
        ("guarded-sita(big_to=x)", "unknown big_to 'x'; allowed: fastest, slowest"),
        ("guarded-sita(large=2)", "unknown option of scheduler 'guarded-sita' 'large'; "),
        ("guarded-sita(2)", "option of scheduler 'guarded-sita' '2': must look like NAME=VALUE"),
        ("guarded-sita(big=2", r"unknown scheduler 'guarded-sita\(big=2'; did you mean guarded-sita"),
        ("guarded(big=2)", "unknown scheduler 'guarded'; did you mean guarded-sita"),
    ],
)
def test_bad_names_with_options_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        jaxlb.scheduler(name)
    with pytest.raises(ValueError, match="big = 1: given twice to scheduler 'guarded-sita'"):
        jaxlb.scheduler("guarded-sita(big=1)", big=2)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("scenario", "overrides", "name", "options", "response"),
    [
        ("stable", {}, "lwl", {}, 1.745541),  # M/M/4
        pytest.param("stable", {"num_processors": 2}, "rr", {}, 3.843980, marks=SLOW),  # E2/M/1
        pytest.param("stable", {"num_processors": 2}, "jsq", {"ties": "random"}, 2.955737, marks=SLOW),
        pytest.param("two-server", {}, "sed", {}, 3.7148, marks=SLOW),
        pytest.param("two-server", {}, "lwr", {}, 3.4616, marks=SLOW),  # smallest n / speed
        ("two-server", {}, "jsq", {"ties": "random"}, 4.8643),
    ],
)
def test_mean_response_of_textbook_systems(scenario, overrides, name, options, response, key):
    """Within 5 standard errors, and those below 1 %."""
    env, params = jaxlb.make(scenario, **overrides)
    summary = jaxlb.rollout(
        env, params, jaxlb.scheduler(name, **options), key, num_lanes=1000, num_tasks=3000, warmup=1000
    )
    lanes = np.asarray(summary.mean_completion, np.float64)
    error = lanes.std(ddof=1) / np.sqrt(len(lanes))
    assert error < 0.01 * response
    assert abs(lanes.mean() - response) < 5 * error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("speed", "load", "response"),
    [([1.0, 1.0], 0.5, 1.310), ([1.0, 1.0], 0.8, 2.405), ([1.0, 0.2], 0.7, 2.951)],
)
def test_optimal_promises_what_an_independent_solver_found_and_keeps_it(speed, load, response, key):
    env, params = jaxlb.make("stable", speed=speed, load=load)
    values = jax.jit(optimal.solve)(params)
    assert float(values.mean_response) == pytest.approx(response, rel=3e-3)
    summary = jaxlb.rollout(env, params, jaxlb.scheduler("optimal"), key, 1024, 3000, 1000)
    lanes = np.asarray(summary.mean_completion, np.float64)
    assert abs(lanes.mean() - response) < 5 * lanes.std(ddof=1) / np.sqrt(len(lanes)) + 3e-3 * response
    # On the same tasks it beats whoever looks no further than the task itself.
    greedy = jaxlb.rollout(env, params, jaxlb.scheduler("greedy"), key, 1024, 3000, 1000)
    assert (np.asarray(greedy.mean_completion) - lanes).mean() > 0.01 * response


@pytest.mark.slow
def test_optimal_acts_on_its_values(key):
    # Its choices, task by task, from the solved table in float64 with SciPy's interpolation.
    env, params = jaxlb.make("stable", speed=[1.0, 0.5], load=0.7)
    tasks = workload.sample(key, params, 4000)
    outcome = jaxlb.replay(env, params, jaxlb.scheduler("optimal"), tasks, key)
    values = jax.jit(optimal.solve)(params)
    count = values.table.shape[0]
    knots = np.asarray(optimal._knots(jnp.arange(count), values.first, values.growth), np.float64)
    table = interpolate.RegularGridInterpolator(
        (knots, knots), np.asarray(values.table, np.float64), bounds_error=False, fill_value=None
    )
    wait, speed, close = np.zeros(2), np.array([1.0, 0.5]), 0
    for gap, size, action in zip(*map(np.asarray, (tasks.gap, tasks.size, outcome.action)), strict=True):
        wait = np.maximum(wait - float(gap), 0.0)
        done = wait + float(size) / speed
        after = table([[done[0], wait[1]], [wait[0], done[1]]])
        cost = done + after
        close += action != cost.argmin()
        assert cost[action] <= cost.min() + 2e-5 * abs(cost).max()
        wait[action] = done[action]
    assert close <= 4  # choices within rounding of each other


def test_optimal_is_for_two_processors(key):
    env, params = jaxlb.make("stable")
    with pytest.raises(ValueError, match="num_processors = 4: must be 2 for scheduler 'optimal'"):
        jaxlb.rollout(env, params, jaxlb.scheduler("optimal"), key, 4, 4)


@pytest.mark.parametrize("name", sorted(set(jaxlb.schedulers()) - {"optimal"}))
def test_a_rollout_calls_nothing_on_the_host(name):
    env, params = jaxlb.make("stale", measure_noise=0.1)
    rule, key = jaxlb.scheduler(name), jax.random.key(0)

    def summary(params, key):
        return jaxlb.rollout(env, params, rule, key, num_lanes=4, num_tasks=3)

    program = str(jax.make_jaxpr(summary)(params, key))
    assert "while" in program
    assert "callback" not in program


def test_a_scheduler_may_be_given_by_its_name():
    lwr = jaxlb.scheduler("lwr")
    assert as_scheduler("lwr") == lwr and as_scheduler(lwr) is lwr
    with pytest.raises(ValueError, match="unknown scheduler 'lwrr'; did you mean"):
        as_scheduler("lwrr")
    told = r"scheduler = .*: must be a name or a jaxlb.Scheduler"
    with pytest.raises(ValueError, match="scheduler 'own': its variables are functions; must be numbers"):
        as_scheduler(jaxlb.Scheduler("own", lambda key, seen: (), lwr.start, lwr.act))
    for bad in (3, None, (lwr, ()), ["lwr"], lambda: lwr, np.ones(100)):
        with pytest.raises(ValueError, match=told) as caught:
            as_scheduler(bad)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_start_that_takes_too_few_arguments_is_told_what_it_must_take(key):
    env, params = jaxlb.make("stable")
    own = jaxlb.scheduler("lwr").replace(name="own", start=lambda params, lanes: ())
    said = r"scheduler 'own': its start takes \(params, lanes\), must take \(env, params, lanes\)"
    with pytest.raises(ValueError, match=said):
        jaxlb.rollout(env, params, own, key, 2, 10)
    with pytest.raises(ValueError, match=said):
        jaxlb.replay(env, params, own, workload.sample(key, params, 3), key)
    hedge = jaxlb.scheduler("hedge", candidates=(jaxlb.scheduler("lwr"), own))
    with pytest.raises(ValueError, match=said):
        jaxlb.rollout(env, params, hedge, key, 2, 10)
