"""Rules that go by size: where they cut, and what they do with many tasks of one size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import theory, workload
from jaxlb.params import with_lane_axis
from jaxlb.scheduling.size_based import load_cutoffs
from jaxlb.workload import sizes
from tests import small
from tests.choices import choose, observation, params_of


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


@pytest.mark.parametrize("name", small.mostly_slow(ATOMS, ["bimodal, 1/4", "a log, 0.15"]))
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
@pytest.mark.parametrize("name", small.mostly_slow(["sita-e", "card"], ["card"]))
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


def test_card_in_bands_lowers_the_threshold_as_tasks_grow():
    params = params_of([1.0, 1.0])
    edges = [float(x) for x in load_cutoffs(params.size, jnp.linspace(0.4, 0.6, 3))]
    limit = 2.0 * float(params.size.mean())
    for size, factor in [(0.5 * (edges[0] + edges[1]), 1.5), (0.5 * (edges[1] + edges[2]), 0.5)]:
        for wait, expected in [(0.9 * factor * limit, 1), (1.1 * factor * limit, 0)]:
            seen = observation([50.0, wait], size=size)
            assert choose("card(bands=2)", seen, params=params)[0] == expected


def test_flexible_card_takes_the_longest_for_long():
    params = params_of([1.0, 1.0])
    _, large = (float(x) for x in load_cutoffs(params.size, jnp.array([0.4, 0.6])))
    for waits, expected in [([5.0, 9.0], 1), ([9.0, 5.0], 0), ([0.0, 0.0], 0)]:
        seen = observation(waits, size=1.1 * large)
        assert choose("card(flexible=true)", seen, params=params)[0] == expected
        assert choose("card", seen, params=params)[0] == 0


def test_dice_follows_its_definition():
    """Limits are 2 and 6 mean services, of 1.5 mean speeds; the slowest is asked last and accepts all."""
    params = params_of([1.0, 0.5, 3.0])
    unit = float(params.size.mean()) / 1.5
    for waits, size, expected in [
        ([0.0, 0.0, 1.9], 0.1, 2),
        ([0.0, 0.0, 2.1], 0.1, 0),
        ([5.9, 0.0, 2.1], 0.1, 0),
        ([6.1, 90.0, 2.1], 0.1, 1),
        ([0.0, 0.0, 0.0], 20.0, 1),
    ]:
        seen = observation(np.array(waits) * unit, speed=[1.0, 0.5, 3.0], size=size * unit)
        assert choose("dice(limit=2, growth=3)", seen, params=params)[0] == expected
    seen = observation([0.0, 0.0, 0.0], speed=[1.0, 0.5, 3.0], size=100.0 * unit)
    assert choose("dice(limit=2, growth=3, last=fastest)", seen, params=params)[0] == 2
