"""Formulas and solvers against values published elsewhere, and against each other."""

import numpy as np
import pytest

from jaxlb import theory


def test_one_processor():
    np.testing.assert_allclose(theory.mm1_response_tail(0.8, 5.0), 0.36788, atol=1e-5)
    # Load 0.8, squared coefficients of variation 0, 1, 10.
    for squared_cv, wait in ((0.0, 2.0), (1.0, 4.0), (10.0, 22.0)):
        np.testing.assert_allclose(theory.mg1_wait(0.8, 1.0, 1.0 + squared_cv), wait)


@pytest.mark.parametrize(
    ("num_processors", "responses"),
    [(2, (1.333333, 2.777778, 5.263158)), (4, (1.086957, 1.745541, 2.969383))],
)
def test_central_queue(num_processors, responses):
    found = [theory.mmk_response(num_processors, load) for load in (0.5, 0.8, 0.9)]
    np.testing.assert_allclose(found, responses, atol=1e-6)


def test_central_queue_of_one_is_one_processor():
    assert theory.erlang_c(1, 0.7) == pytest.approx(0.7)
    assert theory.mmk_wait_tail(1, 0.7, 0.0) == pytest.approx(0.7)
    np.testing.assert_allclose(theory.kiefer_wolfowitz([1, 1, 5], [3, 1, 1], 1), [0, 2, 0])
    np.testing.assert_allclose(theory.kiefer_wolfowitz([1, 1, 1, 1], [3, 3, 1, 1], 2), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("num_processors", "responses"),
    [(2, (1.618034, 3.843980, 7.588284)), (4, (1.432523, 3.267384, 6.383050))],
)
def test_round_robin(num_processors, responses):
    found = [theory.round_robin_response(num_processors, load) for load in (0.5, 0.8, 0.9)]
    np.testing.assert_allclose(found, responses, atol=1e-6)


@pytest.mark.parametrize(
    ("load", "response"), [(0.5, 1.426321), (0.7, 2.108197), (0.8, 2.955737), (0.9, 5.474909)]
)
def test_shortest_of_two_queues(load, response):
    chain = theory.Lengths(load, (1.0, 1.0), capacity=100)
    assert chain.response(chain.smallest(chain.length)) == pytest.approx(response, abs=5e-6)


@pytest.mark.parametrize(
    ("slow", "jsq", "fewest_per_speed", "sed", "optimum"),
    [(0.2, 4.8643, 3.4616, 3.7148, 3.3577), (0.5, 3.0130, 2.7410, 2.8850, 2.7409)],
)
def test_two_unequal_processors(slow, jsq, fewest_per_speed, sed, optimum):
    chain = theory.Lengths(0.7, (1.0, slow), capacity=70)
    number, speed = chain.length, chain.speed[:, None]
    assert chain.response(chain.smallest(number)) == pytest.approx(jsq, abs=6e-5)
    assert chain.response(chain.first_smallest(number / speed)) == pytest.approx(fewest_per_speed, abs=6e-5)
    assert chain.response(chain.first_smallest((number + 1) / speed)) == pytest.approx(sed, abs=6e-5)
    best, choice = chain.optimum()
    assert best == pytest.approx(optimum, abs=6e-5)
    # The optimum's own stationary law gives the same mean: two routes to one number.
    assert chain.response(choice) == pytest.approx(best, rel=1e-6)


def test_power_of_d_on_few_and_on_many_processors():
    two = theory.Lengths(0.7, (1.0, 1.0), capacity=60)
    # One sample is blind; many samples see everything.
    assert two.response(two.power_of_d(1)) == pytest.approx(1.0 / 0.3, rel=1e-5)
    assert two.response(two.power_of_d(12)) == pytest.approx(2.108197, rel=1e-3)
    assert theory.mean_field_power_of_d(0.5, 2) == pytest.approx(1.2657, abs=5e-5)
    assert theory.mean_field_power_of_d(0.9, 2) == pytest.approx(2.6141, abs=5e-5)
    assert theory.mean_field_power_of_d(0.9, 1) == pytest.approx(10.0)


def test_stale_lengths():
    assert theory.stale_power_of_d(0.9, 2, 5.0) == pytest.approx(3.970, abs=1e-3)
    assert theory.stale_power_of_d(0.9, 3, 5.0) == pytest.approx(4.285, abs=1e-3)
    assert theory.stale_power_of_d(0.9, 2, 1.0) == pytest.approx(2.936, abs=1e-3)
    # With fresh figures the mean field; one sample does not look at them.
    assert theory.stale_power_of_d(0.7, 2, 0.01) == pytest.approx(
        theory.mean_field_power_of_d(0.7, 2), rel=3e-3
    )
    assert theory.stale_power_of_d(0.7, 1, 3.0) == pytest.approx(1.0 / 0.3, rel=1e-4)
    # The herd: JSQ is best on fresh figures and worst on old ones.
    fresh, old = ([theory.stale_power_of_d(0.9, d, interval) for d in (2, np.inf)] for interval in (0.2, 1.0))
    assert fresh[1] < 0.7 * fresh[0]
    assert old[1] > 1.2 * old[0]


def test_size_intervals():
    cutoffs, wait = theory.sita_e(0.8, 4, 1.5, 0.339589, 1000.0)
    assert cutoffs[0] == pytest.approx(0.5964, abs=5e-5)
    assert wait == pytest.approx(4.179, abs=6e-4)
    second = theory.bounded_pareto_moment(2, 1.5, 0.339589, 1000.0)
    assert theory.mg1_wait(0.8, 1.0, second) == pytest.approx(36.86, abs=5e-3)


def test_gaps_of_processes_that_are_poisson_after_all():
    np.testing.assert_allclose(theory.mmpp_gaps(1.0, 0.3, 10.0), (1.0, 0.0), atol=1e-12)
    np.testing.assert_allclose(theory.drift_gaps(0.0, 5.0), (1.0, 0.0), atol=1e-12)
    np.testing.assert_allclose(theory.shift_gaps(20.0, 1.0 + 1e-9), (1.0, 0.0), atol=1e-6)
    np.testing.assert_allclose(theory.diurnal_gaps(1e-6, 50.0), (1.0, 0.0), atol=1e-5)
