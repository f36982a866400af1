"""Queueing theory: formulas and small solvers, in float64 on the host, apart from the simulator.

Unless stated otherwise the mean service time at speed 1 is 1, `load` is arrival rate x mean size / total
speed, a response is the time from arrival to departure and a wait the time from arrival to start.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import integrate, interpolate, optimize, sparse
from scipy.sparse.linalg import spsolve

FloatArray = np.ndarray

# Any number of processors.


def bearable_load(speed: FloatArray, share: FloatArray, affinity: FloatArray) -> float:
    """Return the load that processors can just bear if tasks of some classes are slower at some, or barred.

    The largest at which the work of each class can be divided among processors so that none gets more than it
    can do, as a linear program (Harrison and Lopez 1999).

    Args:
      speed: `[P]`, or `[P, N]` of N lanes, of which the worst counts.
      share: `[C]` or `[C, N]`, of the tasks, of equal mean size.
      affinity: `[C, P]` or `[C, P, N]`, factor of the speed.
    """
    speed, share, affinity = (np.asarray(given, np.float64) for given in (speed, share, affinity))
    classes, processors = affinity.shape[:2]
    flat = [part.reshape(size, -1) for part, size in ((speed, processors), (share, classes))]
    flat += [affinity.reshape(classes * processors, -1)]
    width = max(part.shape[1] for part in flat)
    lanes = np.vstack([np.broadcast_to(part, (len(part), width)) for part in flat])
    parts = (np.split(lane, [processors, processors + classes]) for lane in np.unique(lanes, axis=1).T)
    return min(_bearable_load(speed, share, rest.reshape(classes, -1)) for speed, share, rest in parts)


def _bearable_load(speed: FloatArray, share: FloatArray, affinity: FloatArray) -> float:
    classes, processors = affinity.shape
    rates = affinity * speed
    # The time of each processor for each class, and the load.
    served = np.zeros((classes, classes * processors + 1))
    for each in range(classes):
        served[each, each * processors : (each + 1) * processors] = -rates[each]
    served[:, -1] = share * speed.sum()
    busy = np.hstack([np.tile(np.eye(processors), classes), np.zeros((processors, 1))])
    cost = np.zeros(classes * processors + 1)
    cost[-1] = -1.0
    bounds = np.concatenate([np.zeros(classes), np.ones(processors)])
    return float(optimize.linprog(cost, np.vstack([served, busy]), bounds).x[-1])


# One processor, and processors behind one queue.


def mm1_response_tail(load: float, time: float) -> float:
    """Return P(response > time) in an M/M/1 queue, an exponential law (Harchol-Balter 2013, section 27.2)."""
    return float(np.exp(-(1.0 - load) * time))


def mg1_wait(load: float, mean: float, second_moment: float) -> float:
    """Return the mean wait in an M/G/1 queue of speed 1 (Pollaczek 1930, Khinchine 1932)."""
    return load * second_moment / (2.0 * mean * (1.0 - load))


def erlang_c(num_processors: int, load: float) -> float:
    """Return the probability that a task of an M/M/k queue has to wait (Erlang 1917)."""
    offered, blocked = num_processors * load, 1.0
    for count in range(1, num_processors + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1.0 - load * (1.0 - blocked))


def mmk_response(num_processors: int, load: float) -> float:
    """Return the mean response of an M/M/k queue, which LWL on equal processors is task by task."""
    return 1.0 + erlang_c(num_processors, load) / (num_processors * (1.0 - load))


def mmk_wait_tail(num_processors: int, load: float, time: float) -> float:
    """Return P(wait > time) in an M/M/k queue."""
    return float(erlang_c(num_processors, load) * np.exp(-num_processors * (1.0 - load) * time))


def kiefer_wolfowitz(gaps: FloatArray, sizes: FloatArray, num_processors: int) -> FloatArray:
    """Return the waits of tasks at equal processors behind one central queue (Kiefer and Wolfowitz 1955).

    Args:
      gaps: `[T]` time before each task.
      sizes: `[T]` service times.
      num_processors: of speed 1.

    Returns:
      `[T]` time.
    """
    backlog, waits = np.zeros(num_processors), np.empty(len(gaps))
    for index, (gap, size) in enumerate(zip(np.asarray(gaps, float), np.asarray(sizes, float), strict=True)):
        backlog = np.sort(np.maximum(backlog - gap, 0.0))
        waits[index] = backlog[0]
        backlog[0] += size
    return waits


def round_robin_response(num_processors: int, load: float) -> float:
    """Return Round Robin's mean response: equal processors are E_P/M/1 queues (Kleinrock 1975, 6.4)."""
    rate = num_processors * load  # of the Erlang stages

    def excess(sigma: float) -> float:
        return (rate / (rate + 1.0 - sigma)) ** num_processors - sigma

    # The root at 1 is not the one: the other lies below it, where the excess is positive at 0.
    sigma = optimize.root_scalar(excess, bracket=(0.0, 1.0 - 1e-3 * (1.0 - load))).root
    return 1.0 / (1.0 - sigma)


# Rules on queue lengths: a truncated Markov chain, solved.


class Lengths:
    """The Markov chain of P queue lengths under Poisson arrivals and exponential sizes, cut at a capacity.

    A task sent to a full queue is lost, so take a capacity that is practically never reached.
    """

    def __init__(self, load: float, speed: Sequence[float], capacity: int) -> None:
        """Enumerate the states, queue lengths 0 to `capacity` at each processor of the given speeds."""
        self.speed = np.asarray(speed, float)
        self.arrival_rate = load * self.speed.sum()
        num_processors = len(self.speed)
        shape = (capacity + 1,) * num_processors
        self.length = np.indices(shape).reshape(num_processors, -1)  # [P, S]
        step = np.array([int(np.prod(shape[i + 1 :])) for i in range(num_processors)])[:, None]
        here = np.arange(self.length.shape[1])
        self._up = np.where(self.length < capacity, here + step, here)
        self._down = np.where(self.length > 0, here - step, here)

    def _generator(self, choice: FloatArray) -> sparse.csr_matrix:
        """Return transition rates, if arrivals go to each processor with probability `[P, S]`."""
        count = self.length.shape[1]
        here = np.arange(count)
        rows, columns, rates = [], [], []
        for processor, speed in enumerate(self.speed):
            for target, rate in (
                (self._up[processor], self.arrival_rate * choice[processor]),
                (self._down[processor], np.full(count, speed)),
            ):
                moves = target != here
                rows += [here[moves], here[moves]]
                columns += [target[moves], here[moves]]
                rates += [rate[moves], -rate[moves]]
        entries = np.concatenate(rates), (np.concatenate(rows), np.concatenate(columns))
        return sparse.csr_matrix(entries, shape=(count, count))

    def response(self, choice: FloatArray) -> float:
        """Return the mean response if choice[i, s] is the probability that state s sends to processor i."""
        balance = sparse.lil_matrix(self._generator(choice).T)
        balance[0] = 1.0  # one equation is redundant: probabilities sum to 1 instead
        right = np.zeros(self.length.shape[1])
        right[0] = 1.0
        probability = spsolve(balance.tocsc(), right)
        return float(probability @ self.length.sum(0) / self.arrival_rate)

    def smallest(self, cost: FloatArray) -> FloatArray:
        """Return the choice of the smallest cost `[P, S]`, ties split evenly."""
        best = np.isclose(cost, cost.min(0), rtol=1e-12, atol=1e-12)
        return best / best.sum(0)

    def first_smallest(self, cost: FloatArray) -> FloatArray:
        """Return the choice of the smallest cost `[P, S]`, ties to the fastest."""
        best = self.smallest(cost) > 0
        rank = np.argsort(np.argsort(-self.speed, kind="stable"))[:, None]
        ranked = np.where(best, rank, len(self.speed))
        return (ranked == ranked.min(0)).astype(float)

    def power_of_d(self, d: int) -> FloatArray:
        """Return the choice of the shortest of d queues sampled with replacement, ties split evenly."""
        count = len(self.speed)
        choice = np.zeros_like(self.length, float)
        for sample in np.ndindex(*(count,) * d):
            lengths = self.length[list(sample)]
            best = lengths == lengths.min(0)
            for position, processor in enumerate(sample):
                choice[processor] += best[position] / best.sum(0)
        return choice / count**d

    def optimum(self) -> tuple[float, FloatArray]:
        """Return the smallest mean response of any rule on queue lengths, and its choice `[P, S]`.

        Policy iteration on the relative value of a state, the number in the system as cost rate
        (Howard 1960; Puterman 1994, 8.6).
        """
        choice = self.first_smallest((self.length + 1.0) / self.speed[:, None])
        number = self.length.sum(0)
        while True:
            # generator @ value = mean number - number, value[0] = 0; column 0 carries the mean instead.
            equations = sparse.lil_matrix(self._generator(choice))
            equations[:, 0] = -1.0
            solution = np.asarray(spsolve(equations.tocsc(), -number.astype(float)))
            mean_number, value = solution[0], np.concatenate([[0.0], solution[1:]])
            # A full queue cannot be joined.
            joining = np.where(self._up != np.arange(len(number)), value[self._up], np.inf)
            kept = np.where(choice > 0, joining, 0.0).sum(0)  # exactly one is chosen
            better = joining.min(0) < kept * (1.0 - 1e-9)
            if not better.any():
                return float(mean_number / self.arrival_rate), choice
            choice = np.where(better, self.first_smallest(joining), choice)


def mean_field_power_of_d(load: float, d: int) -> float:
    """Return the mean response of power-of-d at infinite P (Vvedenskaya 1996, Mitzenmacher 1996)."""
    if d == 1:
        return 1.0 / (1.0 - load)
    powers = (float(d) ** np.arange(1, int(40 / np.log2(d))) - d) / (d - 1)
    return float((load**powers).sum())


def stale_power_of_d(load: float, d: float, interval: float, capacity: int = 120) -> float:
    """Return the mean response of power-of-d on lengths that are all published every `interval`, P infinite.

    The fluid limit of the periodic update model (Mitzenmacher 2000, "How useful is old information?"): while
    a publication stands, a processor published with length b receives Poisson arrivals at a constant rate.

    Args:
      load: arrival rate for each processor, in (0, 1).
      d: number of samples; infinity is JSQ, ties evenly at random.
      interval: time between publications, in mean services.
      capacity: longest queue in the equations.
    """
    length = np.arange(capacity + 1)

    def slope(law: FloatArray, rate: FloatArray) -> FloatArray:
        """Return Kolmogorov's equations of M/M/1 queues, laws `[B, length]`, arrival rates `[B, 1]`."""
        up, down = rate * law[:, :-1], law[:, 1:]
        change = np.zeros_like(law)
        change[:, :-1] += down - up
        change[:, 1:] += up - down
        return change

    published = np.eye(1, capacity + 1)[0]
    while True:
        at_least = np.append(np.cumsum(published[::-1])[::-1], 0.0)
        here = np.flatnonzero(published > 1e-12)
        reached = np.zeros(capacity + 1)
        if np.isinf(d):
            reached[here[0]] = 1.0
        else:
            reached = at_least[:-1] ** d - at_least[1:] ** d
        rate = (load * reached[here] / published[here])[:, None]
        law = np.diag(published)[here]
        steps = int(np.ceil(interval * (float(rate.max()) + 1.0)))
        time = interval / steps
        number = 0.0
        for _ in range(steps):  # Runge and Kutta's fourth-order rule
            first = slope(law, rate)
            second = slope(law + 0.5 * time * first, rate)
            third = slope(law + 0.5 * time * second, rate)
            after = law + time / 6.0 * (first + 2.0 * second + 2.0 * third + slope(law + time * third, rate))
            number += 0.5 * float(((law + after) @ length).sum()) / steps
            law = after
        change = np.abs(law.sum(0) - published).sum()
        published = law.sum(0) / law.sum()
        if change < 1e-9:
            return number / load


# Size-based splitting.


def bounded_pareto_moment(
    order: float,
    tail_index: float,
    low: float,
    high: float,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Return E[size^order; above < size <= below] of a Pareto law on [low, high]."""
    above, below = low if above is None else above, high if below is None else below
    density = tail_index * low**tail_index / (1.0 - (low / high) ** tail_index)
    power = order - tail_index
    return density * (below**power - above**power) / power


def sita_e(
    load: float, num_processors: int, tail_index: float, low: float, high: float
) -> tuple[FloatArray, float]:
    """Return cutoffs and mean wait of SITA-E, equal processors, sizes bounded Pareto (Harchol-Balter 1999).

    Each processor is an M/G/1 queue of the sizes between two cutoffs, and all have the same load.

    Returns:
      `[P - 1]` work, and time.
    """
    mean = bounded_pareto_moment(1, tail_index, low, high)

    def excess(cutoff: float, share: float) -> float:
        return bounded_pareto_moment(1, tail_index, low, high, below=cutoff) - share * mean

    shares = np.arange(1, num_processors) / num_processors
    cutoffs = [optimize.root_scalar(excess, (share,), bracket=(low, high)).root for share in shares]
    edges, wait = [low, *cutoffs, high], 0.0
    for above, below in itertools.pairwise(edges):
        count, work, square = (
            bounded_pareto_moment(order, tail_index, low, high, above, below) for order in (0, 1, 2)
        )
        wait += count * mg1_wait(load, work / count, square / count)
    return np.array(cutoffs), wait


# Gaps of arrival processes, in mean gaps: squared coefficient of variation, lag-1 autocorrelation.


def mmpp_gaps(burst_ratio: float, burst_fraction: float, cycle_tasks: float) -> tuple[float, float]:
    """Return variation and autocorrelation for an MMPP(2), by matrices (Fischer, Meier-Hellstern 1993)."""
    low = 1.0 / (1.0 + burst_fraction * (burst_ratio - 1.0))
    rates = np.array([low * burst_ratio, low])
    leave = 1.0 / (np.array([burst_fraction, 1.0 - burst_fraction]) * cycle_tasks)
    inverse = np.linalg.inv(np.diag(rates + leave) - np.array([[0.0, leave[0]], [leave[1], 0.0]]))
    start = np.array([burst_fraction, 1.0 - burst_fraction]) * rates
    second = 2.0 * float((start @ inverse @ inverse).sum())
    product = float((start @ inverse @ inverse @ np.diag(rates) @ inverse).sum())
    return second - 1.0, (product - 1.0) / (second - 1.0)


def drift_gaps(volatility: float, memory_tasks: float) -> tuple[float, float]:
    """Return variation and autocorrelation if the log-rate is a normal autoregression.

    They come from products of lognormal means; gaps are exponential at a given rate.
    """
    squared_cv = 2.0 * np.exp(volatility**2) - 1.0
    return float(squared_cv), float(np.expm1(volatility**2 * np.exp(-1.0 / memory_tasks)) / squared_cv)


def shift_gaps(regime_tasks: float, rate_spread: float) -> tuple[float, float]:
    """Return variation and autocorrelation if the log-rate is drawn uniformly in each geometric regime.

    Gaps are exponential at a given rate.
    """
    spread = np.log(rate_spread)
    second = np.sinh(2.0 * spread) / (2.0 * spread) / (np.sinh(spread) / spread) ** 2
    squared_cv = 2.0 * second - 1.0
    return float(squared_cv), float((1.0 - 1.0 / regime_tasks) * (second - 1.0) / squared_cv)


def diurnal_gaps(amplitude: float, period_tasks: float) -> tuple[float, float]:
    """Return variation and autocorrelation of a Poisson process of rate 1 + amplitude sin(phase).

    They come from a quadrature over phases and gaps.
    """
    phases, times = 128, 10_000
    omega = 2.0 * np.pi / period_tasks
    phase = 2.0 * np.pi * np.arange(phases + 1) / phases
    time, step = np.linspace(0.0, 30.0 / (1.0 - amplitude), times, retstep=True)

    def survival(at: float) -> FloatArray:
        return np.exp(-time - amplitude / omega * (np.cos(at) - np.cos(at + omega * time)))

    mean_from = np.array([integrate.simpson(survival(at), dx=step) for at in phase])
    mean_from = interpolate.CubicSpline(phase, mean_from, bc_type="periodic")
    second, product = 0.0, 0.0
    for at in phase[:-1]:
        weight = (1.0 + amplitude * np.sin(at)) / phases  # of this phase at an arrival
        end = at + omega * time
        density = survival(at) * (1.0 + amplitude * np.sin(end))
        second += weight * integrate.simpson(time**2 * density, dx=step)
        product += weight * integrate.simpson(time * density * mean_from(end), dx=step)
    return float(second - 1.0), float((product - 1.0) / (second - 1.0))
