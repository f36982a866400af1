"""The same tasks through SimPy, an engine none of us wrote: every assignment and completion time."""

import jax
import numpy as np
import pytest
import simpy

import jaxlb

TASKS = 100_000
# Times are multiples of this: sums and even products of them are exact in float32, and ties are common.
GRID = 2.0**-4


def simpy_replay(gaps, sizes, speeds, choose):
    """Processors are SimPy resources of capacity one; completions are read off its clock."""
    environment = simpy.Environment()
    processors = [simpy.Resource(environment) for _ in speeds]
    free = [0.0] * len(speeds)  # what a monitor would know: when each has worked off its queue
    actions, completions = np.empty(len(gaps), int), np.empty(len(gaps))

    def serve(index, processor, service):
        arrived = environment.now
        with processors[processor].request() as turn:
            yield turn
            yield environment.timeout(service)
        completions[index] = environment.now - arrived

    def arrive():
        for index, (gap, size) in enumerate(zip(gaps, sizes, strict=True)):
            yield environment.timeout(gap)
            yield environment.timeout(0)  # departures of this instant, whose events are older, come first
            lengths = [processor.count + len(processor.queue) for processor in processors]
            waits = [max(at - environment.now, 0.0) for at in free]
            services = [size / speed for speed in speeds]
            action = choose(size, lengths, waits, services)
            actions[index] = action
            free[action] = max(free[action], environment.now) + services[action]
            environment.process(serve(index, action, services[action]))

    environment.process(arrive())
    environment.run()
    return actions, completions


def tasks_on_a_grid(rate, seed):
    """Gaps and sizes rounded up to the grid."""
    rng = np.random.default_rng(seed)
    gap = np.ceil(rng.exponential(1.0 / rate, TASKS) / GRID) * GRID
    size = np.ceil(rng.exponential(1.0, TASKS) / GRID) * GRID
    return jaxlb.Task(
        gap=gap.astype(np.float32),
        size=size.astype(np.float32),
        priority=np.zeros(TASKS, np.int32),
        deadline=np.full(TASKS, 3.0, np.float32),
    )


def first(costs, speeds=None):
    """The smallest cost; ties to the fastest where speeds are given, then to the lowest index."""
    return min(range(len(costs)), key=lambda i: (costs[i], 0 if speeds is None else -speeds[i], i))


def rules(speeds, env, params):
    """Every rule that draws nothing, once more in plain Python.

    A rule is (size, lengths, waits, services) -> processor. What one computes beforehand (cutoffs, weights)
    is read from its memory, and tested elsewhere.
    """
    everyone = range(len(speeds))

    def memory(name):
        return jax.tree.map(np.asarray, jaxlb.scheduler(name).start(env, params, ()))

    def completions(waits, services):
        return [wait + service for wait, service in zip(waits, services, strict=True)]

    def greedy(size, lengths, waits, services):
        return first(completions(waits, services), speeds)

    def round_robin():
        turn = -1

        def choose(*_):
            nonlocal turn
            turn = (turn + 1) % len(speeds)
            return turn

        return choose

    def weighted_round_robin():
        credit = [0.0 for _ in everyone]

        def choose(*_):
            for i in everyone:
                credit[i] += speeds[i]
            richest = first([-money for money in credit])
            credit[richest] -= sum(speeds)
            return richest

        return choose

    def lwr_or_turn():
        turns = round_robin()

        def choose(size, lengths, waits, services):
            best, second = sorted(waits)[:2]
            # The threshold is a float32 in the simulator.
            unclear = np.float32(second) * (np.float32(1.0) - np.float32(0.1)) <= np.float32(best)
            return turns() if unclear else first(waits)

        return choose

    def sita(size, *_):
        cutoffs, interval = memory_of["sita-e"]
        return interval.ravel().tolist().index(sum(size > cutoff for cutoff in cutoffs))

    def guarded(size, lengths, waits, services):
        cutoff, allowed = memory_of["guarded-sita"]
        costs = completions(waits, services)
        return first([costs[i] if size <= cutoff or allowed[i] else np.inf for i in everyone], speeds)

    def policy_iteration(size, lengths, waits, services):
        done = completions(waits, services)
        return first([done[i] + weight[i] * (done[i] ** 2 - waits[i] ** 2) for i in everyone], speeds)

    def card(size, lengths, waits, services):
        (small, large), (_, limit, _), long, _ = memory_of["card"]
        short = first([np.inf if i == long else waits[i] for i in everyone], speeds)
        fits = size <= small or (size <= large and waits[short] <= limit)
        return short if fits else int(long)

    def dice(size, lengths, waits, services):
        place, limits = (each.ravel() for each in memory_of["dice"])
        done = completions(waits, services)
        return next(i for i in sorted(everyone, key=lambda i: place[i]) if done[i] <= limits[i])

    def within_guardrails():
        memory = memory_of["guardrails"]
        unit, ratio = np.float32(memory.unit), np.float32(memory.ratio)
        given = {}

        def choose(size, lengths, waits, services):
            rank = int(np.clip(np.floor(np.log(np.float32(size) / unit) / np.log(ratio)), -32, 31))
            had = given.setdefault(rank, [0.0 for _ in everyone])
            largest = max(float(unit * ratio ** np.float32(rank + 1)), size)
            done = completions(waits, services)
            may = [had[i] + services[i] <= min(had) + 2.0 * largest / speeds[i] for i in everyone]
            action = first([done[i] if may[i] else np.inf for i in everyone], speeds)
            had[action] += services[action]
            return action

        return choose

    memory_of = {name: memory(name) for name in ("sita-e", "guarded-sita", "card", "dice", "guardrails")}
    weight = memory("fpi").astype(float)
    return {
        "rr": round_robin(),
        "wrr": weighted_round_robin(),
        "slow-start": weighted_round_robin(),  # all have always been up
        "jsq": lambda size, lengths, waits, services: first(lengths),
        "least-connections": lambda size, lengths, waits, services: first(
            [lengths[i] / speeds[i] for i in everyone], speeds
        ),
        "sed": lambda size, lengths, waits, services: first(
            [(lengths[i] + 1) / speeds[i] for i in everyone], speeds
        ),
        "lwr": lambda size, lengths, waits, services: first(waits),
        "drift-aware": lambda size, lengths, waits, services: first(
            waits
        ),  # figures are those of this moment
        "lwr-rr": lwr_or_turn(),
        "lwl": lambda size, lengths, waits, services: first(waits, speeds),
        "greedy": greedy,
        "myopic": greedy,  # a task delays none before it
        "guardrails": within_guardrails(),
        "oracle": greedy,
        "sita-e": sita,
        "guarded-sita": guarded,
        "fpi": policy_iteration,
        "card": card,
        "dice": dice,
    }


DRAWING = {"random", "weighted-random", "static-split", "jiq", "power-of-d", "tidal", "replicas", "hedge"}
HEARING = {name for name in jaxlb.schedulers() if jaxlb.scheduler(name).departed}  # see test_routers.py
ESTIMATING = {"predictive", "universal"}  # estimates of equal loads differ by rounding, so ties are no test
NAMES = sorted(
    set(jaxlb.schedulers()) - DRAWING - HEARING - ESTIMATING - {"optimal", "deadline-admission"}
)  # these have tests of their own
EQUAL = ("jsq", "greedy", "rr", "lwl", "sed", "lwr", "lwr-rr", "guarded-sita", "card")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "speeds", "load"),
    [(name, (1.0, 1.0, 1.0, 2.0), 0.5) for name in NAMES]
    + [(name, (1.0, 1.0, 1.0, 1.0), 0.75) for name in EQUAL],
    ids=[*(f"{name}-unequal" for name in NAMES), *(f"{name}-equal" for name in EQUAL)],
)
def test_simpy_makes_the_same_choices_and_completions(name, speeds, load, key):
    env, params = jaxlb.make("stable", speed=list(speeds), load=load, queue_capacity=256)
    tasks = tasks_on_a_grid(load * sum(speeds), seed=len(name))
    outcome = jaxlb.replay(env, params, jaxlb.scheduler(name), tasks, key)
    actions, completions = simpy_replay(
        tasks.gap.astype(float).tolist(),
        tasks.size.astype(float).tolist(),
        speeds,
        rules(speeds, env, params)[name],
    )
    np.testing.assert_array_equal(outcome.action, actions)
    np.testing.assert_array_equal(outcome.completion, completions)


def simpy_serve(tasks, actions, speeds, slots=1, interrupts=False, leaves=False, limit=np.inf):
    """Serve by priority class, then number; return completions, and who was refused or left while waiting."""
    environment = simpy.Environment()
    kind = simpy.PreemptiveResource if interrupts else simpy.PriorityResource
    processors = [kind(environment, slots) for _ in speeds]
    columns = (np.asarray(leaf, float) for leaf in (tasks.gap, tasks.size, tasks.priority, tasks.deadline))
    completions, lost = np.full(len(actions), np.inf), np.zeros(len(actions), bool)

    def serve(number, processor, left, priority, deadline):
        arrived = environment.now
        while left > 0:
            with processor.request(priority=priority * len(actions) + number) as turn:
                yield (turn | environment.timeout(deadline)) if leaves else turn
                if not turn.triggered:
                    lost[number] = True
                    break
                began = environment.now
                try:
                    yield environment.timeout(left)
                    left = 0.0
                except simpy.Interrupt:
                    left -= environment.now - began
        completions[number] = environment.now - arrived

    def arrive():
        for number, (gap, size, priority, deadline) in enumerate(zip(*columns, strict=True)):
            yield environment.timeout(gap)
            processor = processors[actions[number]]
            if processor.count + len(processor.queue) >= limit:
                lost[number] = True
                continue
            environment.process(serve(number, processor, size / speeds[actions[number]], priority, deadline))

    environment.process(arrive())
    environment.run()
    return completions, lost


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        pytest.param({"discipline": "priority", "slots": 2}, {"slots": 2}, marks=pytest.mark.slow),
        ({"discipline": "priority-preemptive"}, {"interrupts": True}),
        pytest.param(
            {"discipline": "priority", "leaving": "waiting"}, {"leaves": True}, marks=pytest.mark.slow
        ),
        ({"discipline": "priority", "slots": 3, "limit": 5}, {"slots": 3, "limit": 5}),
    ],
    ids=lambda given: given.get("discipline"),
)
def test_disciplines_serve_as_simpy_does(settings, options, key):
    speeds = [1.0, 1.5]
    env, params = jaxlb.make("seed", speed=speeds, load=0.9, **settings)
    tasks = jaxlb.workload.sample(key, params, 2000)
    # As many as slots can serve; and after the last task the first one's gap passes: time for all to leave.
    gap = tasks.gap / options.get("slots", 1)
    tasks = tasks.replace(gap=gap.at[0].set(1e3))
    outcome = jaxlb.replay(env, params, "random", tasks, key)
    completions, lost = simpy_serve(tasks, np.asarray(outcome.action), speeds, **options)
    np.testing.assert_allclose(outcome.completion, completions, rtol=1e-4, atol=1e-4)
    assert lost.any() == env.sheds
    if env.sheds:
        np.testing.assert_array_equal(outcome.lost, lost)
