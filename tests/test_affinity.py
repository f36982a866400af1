"""Tasks that may go to some processors only, or are faster at some: against plain Python, and theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlb
from jaxlb import cycle, theory
from jaxlb.replaying import watch
from tests import event_engine, small

AFFINITY = np.array([[1.0, 0.0, 0.5], [2.0, 1.0, 0.0], [0.0, 0.7, 1.0]])
"""Three classes, three processors."""
SPEED = np.array([1.0, 0.8, 1.5])


def made(**settings):
    return jaxlb.make("seed", **{"speed": SPEED.tolist(), "affinity": AFFINITY, "load": 0.7} | settings)


def test_greedy_chooses_as_plain_python_does(key):
    env, params = made()
    tasks = jaxlb.workload.sample(key, params, 400)
    outcome = jaxlb.replay(env, params, "greedy", tasks, key)
    wait = np.zeros(3)
    columns = (np.asarray(leaf, np.float64) for leaf in (tasks.gap, tasks.size))
    priority = np.asarray(tasks.priority)
    for number, (gap, size) in enumerate(zip(*columns, strict=True)):
        wait = np.maximum(wait - gap, 0.0)
        factor = AFFINITY[priority[number]]
        service = np.where(factor > 0, size / (SPEED * np.where(factor > 0, factor, 1.0)), np.inf)
        best = int(np.argmin(wait + service))
        assert int(outcome.action[number]) == best
        np.testing.assert_allclose(outcome.completion[number], wait[best] + service[best], rtol=1e-5)
        np.testing.assert_allclose(outcome.service[number], service[best], rtol=1e-6)
        wait[best] += service[best]


@pytest.mark.parametrize("discipline", small.mostly_slow(["ps", "srpt", "fb", "limited-ps"], ["ps"]))
def test_tasks_leave_when_an_event_engine_says(discipline, key):
    env, params = made(discipline=discipline)
    tasks = jaxlb.workload.sample(key, params, 300)
    outcome, completions = watch(
        env, params, jaxlb.scheduler("rr"), tasks, key, lambda rule, memory, seen: seen.truth.completion
    )
    action = np.asarray(outcome.action)
    factor = AFFINITY[np.asarray(tasks.priority), action]
    assert (factor > 0).all()
    there = tasks.replace(size=np.asarray(tasks.size, np.float64) / factor)
    slots = 8 if discipline == "limited-ps" else 1
    expected = event_engine.completions(there, action, SPEED, discipline, slots)
    np.testing.assert_allclose(outcome.completion, expected, rtol=1e-4, atol=1e-4)
    barred = AFFINITY[np.asarray(tasks.priority)] == 0
    assert np.isinf(np.asarray(completions)[barred]).all()
    # The last task's completion is what was expected, since nothing arrives after it.
    np.testing.assert_allclose(outcome.completion[-1], completions[-1, action[-1]], rtol=1e-4)


def test_a_processor_that_may_not_take_a_task_leaves_it_to_the_next_one(key):
    env, params = made()
    state = env.start(params, jaxlb.Task(*map(jnp.float32, (0.0, 1.0)), jnp.int32(2), jnp.float32(9.0)), key)
    taken = [int(env.transition(state, action, state.task, params, key)[1].action) for action in range(5)]
    assert taken == [1, 1, 2, 2, 2]
    state = state.replace(task=state.task.replace(priority=jnp.int32(1)))
    taken = [int(env.transition(state, action, state.task, params, key)[1].action) for action in range(3)]
    assert taken == [0, 1, 0]


RULES = [name for name in jaxlb.schedulers() if name not in ("optimal", "oracle", "deadline-admission")]


@pytest.mark.parametrize(
    ("rule", "settings"),
    [(rule, {}) for rule in ("lwr", "rr", "power-of-d")]
    + [
        pytest.param(rule, {"measure_interval": 5.0, "load_time_constant": None}, marks=pytest.mark.slow)
        for rule in RULES
    ],
)
def test_no_rule_chooses_who_may_not_take_the_task(rule, settings, key):
    """However old the figures are: the kind of the task is new."""
    env, params = made(**settings)
    chosen = []
    scheduler = jaxlb.scheduler(rule)

    def act(variables, memory, observation, key):
        action, memory = scheduler.act(scheduler.variables, memory, observation, key)
        factor = jnp.take_along_axis(observation.affinity, action[None], 0)[0]
        jax.debug.callback(lambda factor: chosen.append(np.array(factor)), factor)
        return action, memory

    tasks = jaxlb.workload.sample(key, params, 200, (4,))
    outcome = jaxlb.replay(env, params, scheduler.replace(act=act), tasks, key)
    jax.effects_barrier()
    assert len(chosen) >= 200 and min(factor.min() for factor in chosen) > 0
    assert len(np.unique(outcome.action)) == 3


@pytest.mark.parametrize("rule", ["oracle", "card", "greedy"])
def test_the_only_one_that_may_take_a_task_gets_it_though_it_is_full(rule, key):
    env, params = jaxlb.make(
        "stable",
        speed=[1.0, 1.0],
        limit=1,
        affinity=np.eye(2),
        class_probability=(0.5, 0.5),
        class_slack=(4.0, 4.0),
    )
    task = jaxlb.Task(jnp.float32(0.0), jnp.float32(1.0), jnp.int32(1), jnp.float32(9.0))
    state = env.start(params, task, key)
    full, _, _ = env.transition(state, 1, task, params, key)
    scheduler = jaxlb.scheduler(rule)
    memory = scheduler.start(env, jaxlb.params.canonical(params), ())
    action, _ = scheduler.act((), memory, env.observe(full, params, key), key)
    assert int(action) == 1
    np.testing.assert_array_equal(cycle.response(env, params, full.system, task), np.inf)


@pytest.mark.slow
def test_two_classes_apart_are_two_queues(key):
    """Each M/M/1, whatever the rule; within 5 standard errors, and those below 1 %."""
    settings = {"class_probability": (0.5, 0.5), "class_slack": (4.0, 4.0), "affinity": np.eye(2)}
    env, params = jaxlb.make("stable", num_processors=2, load=0.6, **settings)
    for rule in ("rr", "universal"):
        run = jaxlb.rollout(env, params, rule, key, 256, 2000, 500)
        mean = np.asarray(run.mean_completion, np.float64)
        error = mean.std(ddof=1) / 16.0
        assert error < 0.025
        assert abs(mean.mean() - 2.5) < 5.0 * error


def test_what_processors_can_bear_with_affinity():
    one = np.ones(2)
    cases = [
        ([0.5, 0.5], [[1, 0], [0, 1]], 1.0),
        ([0.8, 0.2], [[1, 0], [0, 1]], 0.625),  # 1 / (0.8 x 2)
        ([0.8, 0.2], [[1, 0], [1, 1]], 0.625),
        ([0.5, 0.5], [[1, 2], [2, 1]], 2.0),
        ([1.0, 0.0], [[1, 0.5], [1, 1]], 0.75),
    ]
    for share, affinity, load in cases:
        assert theory.bearable_load(one, np.array(share), np.array(affinity, float)) == pytest.approx(load)
    settings = {"num_processors": 2, "class_probability": (0.8, 0.2), "class_slack": (4.0, 4.0)}
    lanes = np.stack([np.ones((2, 2)), np.eye(2)], -1)
    for order in (lanes, lanes[..., ::-1]):  # the worst lane counts
        assert theory.bearable_load(one, np.array([0.8, 0.2]), order) == pytest.approx(0.625)
    with pytest.raises(ValueError, match=r"load = 0.7: must be below 0.625, what processors"):
        jaxlb.make("stable", load=0.7, affinity=[[1.0, 0.0], [0.0, 1.0]], **settings)


@pytest.mark.parametrize(
    ("affinity", "message"),
    [
        (np.ones((2, 3)), r"affinity has shape \(2, 3\): must be \(3, 3\)"),
        (np.array([[1, 1, 1], [0, 0, 0], [1, 1, 1]]), "affinity = 0 in a whole row"),
        (-np.eye(3), "affinity = -1"),
        (np.full((3, 3), np.nan), "affinity = nan"),
        ([[1.0], [1.0, 1.0], [1.0]], "affinity has shape None: must be"),
    ],
)
def test_bad_affinities_are_refused(affinity, message):
    with pytest.raises(ValueError, match=message):
        made(affinity=affinity)


def test_a_step_shows_it_and_training_of_universal_refuses_it(key):
    env, params = made()
    obs, state = env.reset(key, params)
    assert obs.shape == env.observation_space(params).shape == (4 + 4 * 3 + 3 + 3,)
    row = AFFINITY[int(state.task.priority)]
    np.testing.assert_allclose(obs[-6:], [*(row > 0), *row], rtol=1e-6)
    with pytest.raises(ValueError, match="affinity: must be None, since training of universal knows none"):
        jaxlb.train_universal(env, params.replace(affinity=params.affinity), None, key)
