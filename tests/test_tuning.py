"""The best settings of a rule: what one by one would have been found."""

import jax
import numpy as np
import pytest

import jaxlb
from jaxlb import tuning


@pytest.mark.slow
def test_settings_side_by_side_do_what_each_does_alone(key):
    env, params = jaxlb.make("heavy-tail")
    run = {"num_lanes": 16, "num_tasks": 400, "warmup": 50}
    found = tuning.best(env, params, key, **run)
    for one in found.values():
        assert one.name in tuning.GUARDED_SITA
        alone = jaxlb.rollout(env, params, jaxlb.scheduler(one.name), key, *run.values())
        assert one.scheduler == jaxlb.scheduler(one.name)
        assert one.mean_completion == pytest.approx(float(alone.mean_completion.mean()), rel=1e-5)
        assert one.sla_violation_rate == pytest.approx(float(alone.sla_violation_rate.mean()), rel=1e-5)
    # The default is among them, and has not the fewest violations.
    default = jaxlb.rollout(env, params, jaxlb.scheduler("guarded-sita"), key, *run.values())
    assert found["completion"].mean_completion <= float(default.mean_completion.mean())
    assert found["violations"].sla_violation_rate < float(default.sla_violation_rate.mean())


@pytest.mark.slow
@pytest.mark.parametrize("names", [tuning.GUARDED_SITA, tuning.CARD_IN_BANDS[:5], tuning.DICE[:5]])
def test_no_setting_is_better_than_the_best(names, key):
    env, params = jaxlb.make("heavy-tail")
    run = 16, 400, 50
    found = tuning.best(env, params, key, names, *run)
    each = [jaxlb.rollout(env, params, jaxlb.scheduler(name), key, *run) for name in names]
    times, rates = (
        [float(np.mean(getattr(one, figure))) for one in each]
        for figure in ("mean_completion", "sla_violation_rate")
    )
    assert found["completion"].name == names[int(np.argmin(times))]
    assert found["violations"].name == names[int(np.argmin(rates))]


@pytest.mark.slow
def test_a_setting_that_overloads_a_processor_is_not_the_best(key):
    """Large tasks wait at the slowest for ever, so that few others are late."""
    env, params = jaxlb.make("heavy-tail", load=0.9)
    names = tuple(f"dice(limit={limit}, growth={2 * limit}, last=slowest)" for limit in (1, 2))
    run = 32, 1000, 2000
    starving, other = (jaxlb.rollout(env, params, jaxlb.scheduler(name), key, *run) for name in names)
    assert starving.sla_violation_rate.mean() < other.sla_violation_rate.mean()
    assert starving.utilisation.mean(-1).max() > 0.999 > other.utilisation.mean(-1).max()
    assert tuning.best(env, params, key, names, *run)["violations"].name == names[1]


def test_bad_numbers_are_refused():
    env, params = jaxlb.make("heavy-tail")
    with pytest.raises(ValueError, match="num_lanes = 0: must be a whole number of at least 1"):
        tuning.best(env, params, jax.random.key(0), num_lanes=0)


@pytest.mark.parametrize(
    "names", [("card", "dice"), ("card(bands=1)", "card(bands=4)"), ("lwr", "universal")]
)
def test_names_of_several_rules_are_refused(names):
    env, params = jaxlb.make("heavy-tail")
    with pytest.raises(ValueError, match=r"names = .*must be one rule's"):
        tuning.best(env, params, jax.random.key(0), names, 4, 10, 0)
