"""Dispatching rules: blind splitting, and those that use queue lengths or sizes."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb import theory
from jaxlb.environments import make
from jaxlb.scheduling import scheduler
from jaxlb.scheduling.base import no_memory
from jaxlb.scheduling.size_based import load_cutoffs
from jaxlb.types import Array, Key, Observation, Scheduler
from jaxlb.verification.base import (
    DEAR,
    Finding,
    each,
    equal_processors,
    response,
    simulate,
)
from jaxlb.verification.laws import PARETO
from jaxlb.workload import sizes


def round_robin(num_processors: int, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare Round Robin on equal processors with E_P/M/1."""
    findings = {}
    for run_key, (load, millions) in each(key, ((0.5, 10), (0.8, 30), (0.9, 70))):
        env, params = equal_processors(num_processors, load)
        run = simulate(env, params, scheduler("rr"), run_key, millions * thoroughness)
        findings[f"RR on {num_processors}, load {load}: mean response, E_P/M/1"] = Finding(
            response(run), theory.round_robin_response(num_processors, load)
        )
    return findings


def random_splitting(key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare random splitting with independent M/M/1 queues, of unequal load if speeds differ."""
    first_key, second_key, third_key = jax.random.split(key, 3)
    env, params = equal_processors(4, 0.8)
    run = simulate(env, params, scheduler("random"), first_key, 50 * thoroughness)
    findings = {"random on 4, load 0.8: mean response, M/M/1": Finding(response(run), 5.0)}
    env, params = make("stable", speed=[0.5, 1.0, 2.5], load=0.8, queue_capacity=1)
    run = simulate(env, params, scheduler("weighted-random"), second_key, 50 * thoroughness)
    # Each processor is an M/M/1 queue of load 0.8 and gets tasks in proportion to its speed.
    exact = 3.0 / 4.0 / (1.0 - 0.8)
    findings["weighted random on speeds 0.5, 1, 2.5, load 0.8: mean response"] = Finding(response(run), exact)
    run = simulate(env, params, scheduler("static-split"), third_key, 50 * thoroughness)
    # The least that any probabilities bring (Bell and Stidham 1983).
    findings["best static split on speeds 0.5, 1, 2.5, load 0.8: mean response"] = Finding(
        response(run), 3.286156
    )
    return findings


def sita(key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare SITA-E and random splitting with their formulas, bounded Pareto sizes on four processors."""
    tail_index, low, high = PARETO
    law = sizes.BoundedPareto(low, high, tail_index)
    first_key, second_key = jax.random.split(key)
    env, params = equal_processors(4, 0.8, size=law)
    cutoffs, wait = theory.sita_e(0.8, 4, tail_index, low, high)
    findings = {
        f"SITA-E: cutoff {index + 1} of 3": Finding(cutoff, exact)
        for index, (cutoff, exact) in enumerate(
            zip(load_cutoffs(law, jnp.array([0.25, 0.5, 0.75])), cutoffs, strict=True)
        )
    }
    run = simulate(env, params, scheduler("sita-e"), first_key, 300 * thoroughness)
    findings["SITA-E: mean wait"] = Finding(response(run) - 1.0, wait, precision=DEAR)
    run = simulate(env, params, scheduler("random"), second_key, 300 * thoroughness)
    second = theory.bounded_pareto_moment(2, tail_index, low, high)
    findings["random splitting of the same: mean wait"] = Finding(
        response(run) - 1.0, theory.mg1_wait(0.8, 1.0, second), precision=DEAR
    )
    return findings


def jsq(key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare JSQ on two equal processors, ties split evenly, with its Markov chain."""
    findings = {}
    for run_key, (load, millions) in each(key, ((0.5, 10), (0.7, 15), (0.8, 30), (0.9, 80))):
        chain = theory.Lengths(load, (1.0, 1.0), capacity=100)
        env, params = equal_processors(2, load, queue_capacity=64)
        run = simulate(env, params, scheduler("jsq", ties="random"), run_key, millions * thoroughness)
        findings[f"JSQ on 2, load {load}: mean response"] = Finding(
            response(run), chain.response(chain.smallest(chain.length))
        )
    return findings


def power_of_two(key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare power-of-two on few processors with its Markov chain, on 10 and 100 with published figures."""
    findings = {}
    chain = theory.Lengths(0.7, (1.0,) * 3, capacity=15)
    cases = (
        (3, 0.7, chain.response(chain.power_of_d(2)), 15, 1024, "Markov chain"),
        (10, 0.9, 2.8003 / 0.9, 15, 512, "Gast and Van Houdt 2017"),
        (100, 0.9, 2.3931 / 0.9, 8, 64, "Gast and Van Houdt 2017"),
    )
    for run_key, (num_processors, load, exact, millions, lanes, source) in each(key, cases):
        env, params = equal_processors(num_processors, load, queue_capacity=32)
        run = simulate(
            env,
            params,
            scheduler("power-of-d", d=2),
            run_key,
            millions * thoroughness,
            warmup=300 * num_processors,
            lanes=lanes,
        )
        findings[f"power of 2 on {num_processors}, load {load}: mean response, {source}"] = Finding(
            response(run), exact
        )
    return findings


def mean_field(d: int, load: float, millions: float, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare power-of-d on 1000 processors with its limit, from which it differs by 0.2 % at load 0.9."""
    env, params = equal_processors(1000, load, queue_capacity=8)
    run = simulate(
        env, params, scheduler("power-of-d", d=d), key, millions * thoroughness, warmup=50_000, lanes=8
    )
    return {
        f"power of {d} on 1000, load {load}: mean response, mean field": Finding(
            response(run), theory.mean_field_power_of_d(load, d), precision=DEAR
        )
    }


def by_table(choice: np.ndarray, num_states: int) -> Scheduler:
    """Make the rule that `choice` `[2, S]` makes of two queue lengths below `num_states`."""
    table = jnp.asarray(choice[1].reshape(num_states, num_states), jnp.int32)
    return Scheduler("table", table, no_memory, _look_up)


def _look_up(table: Array, memory: tuple, observation: Observation, key: Key) -> tuple[Array, tuple]:
    del key
    first, second = jnp.minimum(observation.queue_length, table.shape[0] - 1)
    return table[first, second], memory


def unequal_processors(slow: float, key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare rules on lengths, and the best of them, on two processors, sizes unknown, load 0.7."""
    chain = theory.Lengths(0.7, (1.0, slow), capacity=70)
    env, params = make("two-server", speed=[1.0, slow], load=0.7, queue_capacity=64)
    number, speed = chain.length, chain.speed[:, None]
    best, choice = chain.optimum()
    rules = {
        "JSQ": (scheduler("jsq", ties="random"), chain.response(chain.smallest(number))),
        "smallest n / speed": (
            scheduler("least-connections"),
            chain.response(chain.first_smallest(number / speed)),
        ),
        "SED": (scheduler("sed"), chain.response(chain.first_smallest((number + 1) / speed))),
        "optimum of value iteration": (by_table(choice, 71), best),
    }
    return {
        f"speeds 1 and {slow}, {name}: mean response": Finding(
            response(simulate(env, params, rule, run_key, 20 * thoroughness)), exact
        )
        for run_key, (name, (rule, exact)) in each(key, tuple(rules.items()))
    }


def size_aware(key: Key, thoroughness: float) -> dict[str, Finding]:
    """Compare the simulated response of the optimal rule on sizes and waits with what it promises."""
    findings = {}
    for run_key, (speed, load) in each(key, (((1.0, 1.0), 0.8), ((1.0, 1.0), 0.5), ((1.0, 0.2), 0.7))):
        env, params = make("stable", speed=list(speed), load=load, queue_capacity=1)
        rule = scheduler("optimal")
        promised = float(jax.jit(rule.start, static_argnums=(0, 2))(env, params, ()).mean_response)
        run = simulate(env, params, rule, run_key, 15 * thoroughness)
        name = f"optimal, speeds {speed[0]:g} and {speed[1]:g}, load {load}"
        findings[f"{name}: mean response, value iteration"] = Finding(response(run), promised)
    return findings


def stale(
    d: int | None,
    interval: float,
    num_processors: int,
    capacity: int,
    millions: float,
    key: Key,
    thoroughness: float,
) -> dict[str, Finding]:
    """Compare many processors, all lengths published at once, load 0.9, with the fluid limit."""
    env, params = equal_processors(num_processors, 0.9, queue_capacity=capacity, measure_interval=interval)
    rule = scheduler("jsq", ties="random") if d is None else scheduler("power-of-d", d=d)
    exact = theory.stale_power_of_d(0.9, np.inf if d is None else d, interval)
    warmup, lanes = 60 * num_processors, 8192 // num_processors
    run = simulate(env, params, rule, key, millions * thoroughness, warmup, lanes)
    name = "JSQ" if d is None else f"power of {d}"
    return {
        f"{name}, lengths published every {interval:g}: mean response, fluid limit": Finding(
            response(run), exact, tolerance=0.02, precision=DEAR
        )
    }
