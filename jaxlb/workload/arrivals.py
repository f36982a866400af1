"""Arrival processes, each a pytree of its parameters.

All are driven by `rate`, the long-run number of tasks per time, which the caller derives from the load.
Times in their parameters are given in tasks (one task = one mean gap), so that a process keeps its shape
when the load changes.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import ndtri

from jaxlb import checks
from jaxlb.types import Array, Key, Lanes, Scalar
from jaxlb.workload.sizes import balanced_probability


class _Process:
    """What a process does unless it defines otherwise: no memory, no part in the tasks."""

    extra_words: ClassVar[int] = 0

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""

    def start(self, key: Key, lanes: Lanes) -> Any:
        """Return the stationary state before the first arrival; the key is consumed."""
        del key, lanes
        return ()

    def size(self, state: Any, drawn: Array, extra: Array) -> Array:
        """Return the size of the task that just arrived, given what the size law drew."""
        del state, extra
        return drawn

    def priority(self, state: Any, drawn: Array) -> Array:
        """Return its priority, given what the class probabilities drew."""
        del state
        return drawn

    def deadline(self, state: Any, computed: Array) -> Array:
        """Return its deadline, given what size and class slack make it."""
        del state
        return computed


class Poisson(_Process, struct.PyTreeNode):
    """Poisson process: independent exponential gaps."""

    def gap(self, state: Any, rate: Scalar, uniform: Array, extra: Array) -> tuple[Array, Any]:
        """Return the next gap and the state after it."""
        del extra
        return -jnp.log(uniform) / rate, state


class Renewal(_Process, struct.PyTreeNode):
    """Renewal process: independent gaps of any squared coefficient of variation c.

    c = 0: constant gaps. 1/stages <= c < 1: with k = ceil(1/c), a sum of k - 1 exponentials with
    probability p, else of k, all of one rate (a pure Erlang law where c = 1/k). c = 1: exponential. c > 1:
    hyperexponential with balanced means. All from Tijms, "Stochastic Models" (1994). Values between 0 and
    1/stages are refused: raise `stages`, which is static and costs one random word each.
    """

    squared_cv: Scalar = 1.0
    stages: int = struct.field(pytree_node=False, default=8)

    @property
    def extra_words(self) -> int:  # type: ignore[override]
        """One word picks the branch, the others are stages beyond the first."""
        return self.stages

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        checks.at_least("stages", self.stages, 2)
        checks.leaf("squared_cv", self.squared_cv, low=0)
        positive = np.where(np.asarray(self.squared_cv) == 0, 1.0, self.squared_cv)
        checks.leaf(f"squared_cv with stages={self.stages}, if not 0,", positive, low=1.0 / self.stages)

    def gap(self, state: Any, rate: Scalar, uniform: Array, extra: Array) -> tuple[Array, Any]:
        """Return the next gap and the state after it."""
        c = jnp.asarray(self.squared_cv)
        logs = -jnp.log(uniform)
        # The tolerance keeps c = 1/k at k stages when 1/c was rounded up.
        k = jnp.ceil(1.0 / jnp.clip(c, 1.0 / self.stages, 1.0) - 1e-5)
        root = jnp.sqrt(jnp.maximum(k * (1.0 + c) - k**2 * c, 0.0))
        p_shorter = (k * c - root) / (1.0 + c)
        count = k - (extra[0] < p_shorter).astype(jnp.float32)
        erlang = logs
        for stage in range(1, self.stages):
            erlang = erlang - jnp.where(stage < count, jnp.log(extra[stage]), 0.0)
        erlang = erlang / (k - p_shorter)
        p_short = balanced_probability(c)
        hyperexponential = logs / (2.0 * jnp.where(extra[0] < p_short, p_short, 1.0 - p_short))
        unit = jnp.where(c == 0, 1.0, jnp.where(c < 1, erlang, hyperexponential))
        return unit / rate, state


class Bursty(_Process, struct.PyTreeNode):
    """Markov-modulated Poisson process of two phases, MMPP(2), in its exact law.

    The rate is high during a share `burst_fraction` of the time, `burst_ratio` times the low rate; both
    phases last exponential times, and one cycle of both sees `cycle_tasks` tasks on average.

    The gap and the phase at its end are drawn jointly without an event loop. From the high phase the gap is
    hyperexponential; from the low phase it is the time to the first event there, plus, if that event was a
    switch, a gap from the high phase. The phase at the end has its conditional probability given the gap,
    from the exponential of the 2 x 2 generator (Fischer and Meier-Hellstern 1993).
    """

    burst_ratio: Scalar = 10.0
    burst_fraction: Scalar = 0.1
    cycle_tasks: Scalar = 200.0
    extra_words: ClassVar[int] = 3

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        checks.leaf("burst_ratio", self.burst_ratio, low=1)
        checks.leaf("burst_fraction", self.burst_fraction, above=0, below=1)
        checks.leaf("cycle_tasks", self.cycle_tasks, above=0)

    def _unit_rates(self) -> tuple[Array, Array, Array, Array]:
        """Return arrival rates high and low, switch rates from high and from low, for a mean rate of 1."""
        fraction = jnp.asarray(self.burst_fraction)
        low = 1.0 / (1.0 + fraction * (self.burst_ratio - 1.0))
        from_high = 1.0 / (fraction * self.cycle_tasks)
        from_low = 1.0 / ((1.0 - fraction) * self.cycle_tasks)
        return low * self.burst_ratio, low, from_high, from_low

    def start(self, key: Key, lanes: Lanes) -> Array:
        """Draw whether the phase is high, `[...]` bool, by its long-run law at arrivals; key consumed."""
        high, _, _, _ = self._unit_rates()
        return jax.random.uniform(key, lanes, jnp.float32) < high * self.burst_fraction

    def gap(self, state: Array, rate: Scalar, uniform: Array, extra: Array) -> tuple[Array, Array]:
        """Return the next gap and whether it ends in the high phase."""
        high, low, from_high, from_low = self._unit_rates()
        leave_high, leave_low = high + from_high, low + from_low
        middle = 0.5 * (leave_high + leave_low)
        radius = jnp.sqrt(0.25 * (leave_high - leave_low) ** 2 + from_high * from_low)
        slow, fast = middle - radius, middle + radius

        p_slow = (fast - high) / (fast - slow)
        from_high_gap = -jnp.log(uniform) / jnp.where(extra[0] < p_slow, slow, fast)
        first_event = -jnp.log(extra[1]) / leave_low
        switches = extra[2] * leave_low < from_low
        passes_high = state | switches
        gap = jnp.where(state, 0.0, first_event) + jnp.where(passes_high, from_high_gap, 0.0)

        # P(end high | gap from the high phase); an arrival straight from the low phase ends low.
        e_slow, e_fast = jnp.exp(-slow * from_high_gap), jnp.exp(-fast * from_high_gap)
        stays = high * ((fast - leave_high) * e_slow + (leave_high - slow) * e_fast)
        leaves = low * from_high * (e_slow - e_fast)
        # The third word, uniform again given `switches`, serves once more.
        spare = jnp.where(state, extra[2], extra[2] * leave_low / from_low)
        return gap / rate, passes_high & (spare * (stays + leaves) < stays)


class Diurnal(_Process, struct.PyTreeNode):
    """Poisson process whose rate swings as rate * (1 + amplitude * sin(phase)), one day = `period_tasks`.

    The next gap solves Kepler's equation (integrated rate = a unit exponential) to float32 precision. The
    phase is kept modulo one day.
    """

    amplitude: Scalar = 0.5
    period_tasks: Scalar = 1000.0

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        checks.leaf("amplitude", self.amplitude, low=0, high=0.95)
        checks.leaf("period_tasks", self.period_tasks, above=0)

    def start(self, key: Key, lanes: Lanes) -> Array:
        """Draw the phase, `[...]` radians in [0, 2 pi), by its long-run law at arrivals; key consumed."""
        phase_key, flip_key = jax.random.split(key)
        phase = jax.random.uniform(phase_key, lanes, jnp.float32, maxval=2.0 * jnp.pi)
        # Density 1 + amplitude sin(phase): between a phase and its mirror image, chosen in that proportion.
        kept = 2.0 * jax.random.uniform(flip_key, lanes, jnp.float32) < 1.0 + self.amplitude * jnp.sin(phase)
        return jnp.where(kept, phase, 2.0 * jnp.pi - phase)

    def gap(self, state: Array, rate: Scalar, uniform: Array, extra: Array) -> tuple[Array, Array]:
        """Return the next gap and the phase after it."""
        del extra
        speed = 2.0 * jnp.pi / self.period_tasks  # radians per mean gap
        target = -jnp.log(uniform) * speed
        low = jnp.maximum(target / (1.0 + self.amplitude), target - 2.0 * self.amplitude)
        high = jnp.minimum(target / (1.0 - self.amplitude), target + 2.0 * self.amplitude)
        turn = jnp.clip(target / (1.0 + self.amplitude * jnp.sin(state)), low, high)
        # Newton inside a bracket that each step narrows: bisects where Newton would leave it, but not where
        # only rounding leads it out, since half of a bracket may be a long way back.
        for _ in range(10):
            excess = turn + 2.0 * self.amplitude * jnp.sin(state + 0.5 * turn) * jnp.sin(0.5 * turn) - target
            low, high = jnp.where(excess <= 0, turn, low), jnp.where(excess >= 0, turn, high)
            step = excess / (1.0 + self.amplitude * jnp.sin(state + turn))
            newton = turn - step
            leaves = ((newton < low) | (newton > high)) & (jnp.abs(step) > 1e-4 * turn)
            turn = jnp.where(leaves, 0.5 * (low + high), newton)
        return turn / (speed * rate), jnp.mod(state + turn, 2.0 * jnp.pi)


class Drift(_Process, struct.PyTreeNode):
    """Poisson arrivals whose log-rate wanders slowly: an autoregression that steps at each arrival.

    The rate stays constant during a gap. Before each gap z <- r z + sqrt(1 - r^2) N(0, 1), with
    r = exp(-1 / memory_tasks), and the rate becomes rate * exp(volatility * z + volatility^2 / 2), so that
    the mean gap is 1 / rate. Gaps have squared coefficient of variation 2 exp(volatility^2) - 1.
    """

    volatility: Scalar = 0.3
    memory_tasks: Scalar = 500.0
    extra_words: ClassVar[int] = 1

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        checks.leaf("volatility", self.volatility, low=0)
        checks.leaf("memory_tasks", self.memory_tasks, above=0)

    def start(self, key: Key, lanes: Lanes) -> Array:
        """Draw the standardised log-rate, `[...]`; the key is consumed."""
        return jax.random.normal(key, lanes, jnp.float32)

    def gap(self, state: Array, rate: Scalar, uniform: Array, extra: Array) -> tuple[Array, Array]:
        """Return the next gap and the standardised log-rate that ruled it."""
        kept = jnp.exp(-1.0 / jnp.asarray(self.memory_tasks))
        state = kept * state + jnp.sqrt(-jnp.expm1(-2.0 / jnp.asarray(self.memory_tasks))) * ndtri(extra[0])
        factor = jnp.exp(self.volatility * state + 0.5 * jnp.asarray(self.volatility) ** 2)
        return -jnp.log(uniform) / (rate * factor), state


class Regime(struct.PyTreeNode):
    """State of `Shift`."""

    rate_factor: Array  # [...]
    large_fraction: Array  # [...]


class Shift(_Process, struct.PyTreeNode):
    """Poisson arrivals whose rate and size mix change abruptly, at the end of geometric runs of tasks.

    Before each arrival the regime ends with probability 1 / regime_tasks. A new one draws its rate factor
    log-uniformly from [1 / rate_spread, rate_spread], scaled so that the mean gap is 1 / rate in the long
    run, and the share of large tasks uniformly from [0, 2 large_fraction]. A large task is `large_factor`
    times the drawn size; all sizes are divided by 1 + large_fraction (large_factor - 1), so that the mean
    size is that of the size law. Loads above 1 during a regime are part of it.
    """

    regime_tasks: Scalar = 500.0
    rate_spread: Scalar = 1.5
    large_fraction: Scalar = 0.1
    large_factor: Scalar = 4.0
    extra_words: ClassVar[int] = 4

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        checks.leaf("regime_tasks", self.regime_tasks, low=1)
        checks.leaf("rate_spread", self.rate_spread, low=1)
        checks.leaf("large_fraction", self.large_fraction, low=0, high=0.5)
        checks.leaf("large_factor", self.large_factor, above=0)

    def _regime(self, uniform_rate: Array, uniform_mix: Array) -> Regime:
        log_spread = jnp.log(jnp.asarray(self.rate_spread))
        safe = jnp.maximum(log_spread, 1e-6)
        mean_inverse = jnp.where(log_spread < 1e-3, 1.0, jnp.sinh(safe) / safe)
        return Regime(
            rate_factor=jnp.exp(log_spread * (2.0 * uniform_rate - 1.0)) * mean_inverse,
            large_fraction=2.0 * self.large_fraction * uniform_mix,
        )

    def start(self, key: Key, lanes: Lanes) -> Regime:
        """Draw the first regime; the key is consumed."""
        rate_key, mix_key = jax.random.split(key)
        return self._regime(
            jax.random.uniform(rate_key, lanes, jnp.float32), jax.random.uniform(mix_key, lanes, jnp.float32)
        )

    def gap(self, state: Regime, rate: Scalar, uniform: Array, extra: Array) -> tuple[Array, Regime]:
        """Return the next gap and the regime that ruled it."""
        ends = extra[0] * self.regime_tasks < 1.0
        new = self._regime(extra[1], extra[2])
        state = jax.tree.map(lambda new, old: jnp.where(ends, new, old), new, state)
        return -jnp.log(uniform) / (rate * state.rate_factor), state

    def size(self, state: Regime, drawn: Array, extra: Array) -> Array:
        """Return the drawn size, enlarged if the task is a large one, on the scale of the law's mean."""
        factor = jnp.where(extra[3] < state.large_fraction, self.large_factor, 1.0)
        return drawn * (factor / (1.0 + self.large_fraction * (jnp.asarray(self.large_factor) - 1.0)))


class Batch(_Process, struct.PyTreeNode):
    """Poisson batches of geometric size with mean `batch_size`; tasks of a batch arrive together, gap 0."""

    batch_size: Scalar = 4.0

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        checks.leaf("batch_size", self.batch_size, low=1)

    def gap(self, state: Any, rate: Scalar, uniform: Array, extra: Array) -> tuple[Array, Any]:
        """Return the next gap and the state after it."""
        del extra
        # One uniform says whether a batch ends here and, scaled back to (0, 1), how long until the next.
        rest = jnp.minimum(uniform * self.batch_size, 1.0)
        return -jnp.log(rest) * self.batch_size / rate, state


class Trace(_Process, struct.PyTreeNode):
    """Tasks of a recorded trace, in their order, endlessly; each lane starts at its own random place.

    Gaps are stored in mean gaps and scaled to the wanted rate. The first gap of a trace, which no file
    tells, is one mean gap.
    """

    unit_gap: Array  # [T], mean 1
    task_size: Array  # [T] work
    task_priority: Array | None = None  # [T] int32
    task_deadline: Array | None = None  # [T] time
    task_prefill: Array | None = None  # [T] work

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        shapes = {name: np.shape(leaf) for name, leaf in vars(self).items() if leaf is not None}
        if len(set(shapes.values())) > 1 or len(np.shape(self.unit_gap)) != 1 or not np.size(self.unit_gap):
            raise ValueError(f"a trace has shapes {shapes}: must all be (T,), of at least one task")
        checks.leaf("unit_gap", self.unit_gap, low=0)
        checks.leaf("mean of unit_gap", np.mean(np.asarray(self.unit_gap, np.float64)), low=0.999, high=1.001)
        checks.leaf("task_size", self.task_size, above=0)
        if self.task_priority is not None:
            checks.leaf("task_priority", self.task_priority, whole=True, low=0)
        if self.task_deadline is not None:
            checks.leaf("task_deadline", self.task_deadline, low=0)
        if self.task_prefill is not None:
            checks.leaf("task_prefill", self.task_prefill, low=0)

    def start(self, key: Key, lanes: Lanes) -> Array:
        """Draw the index of the task before the first, `[...]` int32; the key is consumed."""
        return jax.random.randint(key, lanes, 0, self.unit_gap.shape[0], jnp.int32)

    def gap(self, state: Array, rate: Scalar, uniform: Array, extra: Array) -> tuple[Array, Array]:
        """Return the next gap and the index of the task that ends it."""
        del uniform, extra
        state = jnp.where(state + 1 == self.unit_gap.shape[0], 0, state + 1)
        return self.unit_gap[state] / rate, state

    def size(self, state: Array, drawn: Array, extra: Array) -> Array:
        """Return the recorded size."""
        del drawn, extra
        return self.task_size[state]

    def priority(self, state: Array, drawn: Array) -> Array:
        """Return the recorded priority, or the drawn one where the trace has none."""
        return drawn if self.task_priority is None else self.task_priority[state]

    def deadline(self, state: Array, computed: Array) -> Array:
        """Return the recorded deadline, or the computed one where the trace has none."""
        return computed if self.task_deadline is None else self.task_deadline[state]

    def prefill(self, state: Array) -> Array | None:
        """Return the recorded work until the first token; None where the trace has none."""
        return None if self.task_prefill is None else self.task_prefill[state]
