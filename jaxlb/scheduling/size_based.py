"""Rules that use a task's size and the size law: SITA-E, guarded SITA, FPI, CARD, Dice.

Their cutoffs are computed from the law when a run starts, as constants in the scheduler's memory. Where a
cutoff falls on an atom, a size that many tasks have (of `Bimodal`, or the time limit of a recorded log), each
rule says what becomes of those tasks.
"""

import jax
import jax.numpy as jnp

from jaxlb import checks
from jaxlb.functions import partial
from jaxlb.numerics import at_processor, first_smallest, processor_index
from jaxlb.protocols import SizeLaw
from jaxlb.scheduling.base import (
    after_backlog,
    cheapest,
    relative_load,
    size_at_each,
    usable,
    with_memory,
)
from jaxlb.types import Array, EnvParams, Key, Lanes, Observation, Scheduler, Static

_CELLS, _TAIL_CELLS = 2**14, 2**12


def quadrature(law: SizeLaw) -> tuple[Array, Array]:
    """List sizes of a law in ascending order, and their probabilities: a discrete law much like it.

    The inverse survival function at the middles of cells of (0, 1): equal ones down to 1/32, from there to
    2^-27 in geometric steps. Sorted, since the function of a mixture is not monotone.

    Returns:
      `[G]` work and `[G]`.
    """
    tail = jnp.exp2(jnp.linspace(-27.0, -5.0, _TAIL_CELLS + 1, dtype=jnp.float32))
    body = jnp.linspace(2.0**-5, 1.0, _CELLS + 1, dtype=jnp.float32)
    middles = [jnp.sqrt(tail[1:] * tail[:-1]), 0.5 * (body[1:] + body[:-1])]
    size = law.inverse_survival(jnp.concatenate(middles))
    order = jnp.argsort(size)
    return size[order], jnp.concatenate([jnp.diff(tail), jnp.diff(body)])[order]


def load_cutoffs(law: SizeLaw, fractions: Array) -> Array:
    """Return sizes below which lie the given fractions of the load.

    Args:
      law: of task sizes.
      fractions: `[F]` of the total work, in [0, 1].

    Returns:
      `[F]` work. An atom that a fraction falls into is returned as it is.
    """
    size, probability = quadrature(law)
    work = size * probability
    below = jnp.cumsum(work) - 0.5 * work
    return jnp.interp(fractions * work.sum(), below, size)


def around(law: SizeLaw, cutoffs: Array) -> tuple[Array, Array]:
    """Return parts `[F]` of the load from tasks smaller than each cutoff, and from those up to it."""
    size, probability = quadrature(law)
    work = jnp.cumsum(size * probability)
    up_to = jnp.concatenate([jnp.zeros(1, jnp.float32), work / work[-1]])
    below, at_most = (up_to[jnp.searchsorted(size, cutoffs, side=side)] for side in ("left", "right"))
    return below, at_most


def with_larger(cutoffs: Array, moved: Array) -> Array:
    """Return cutoffs for `size > cutoff`, the `moved` ones just below: then tasks of that size are larger."""
    return jnp.where(moved, jnp.nextafter(jax.lax.stop_gradient(cutoffs), jnp.zeros_like(cutoffs)), cutoffs)


def speeds(params: EnvParams) -> Array:
    """Return speeds `[P]` of the first lane: what a rule computes beforehand is shared by all lanes."""
    return params.speed.reshape(params.speed.shape[0], -1)[:, 0]


def _intervals(small_to: str, env: Static, params: EnvParams, lanes: Lanes) -> tuple[Array, Array]:
    """Return sizes that part the intervals, and the interval of each processor."""
    del env
    speed = speeds(params)
    order = jnp.argsort(speed if small_to == "slowest" else -speed, stable=True)
    share = jnp.cumsum(speed[order]) / speed.sum()
    interval = jnp.argsort(order).astype(jnp.int32)
    return load_cutoffs(params.size, share[:-1]), interval.reshape(-1, *(1,) * len(lanes))


def _sita_e(memory: tuple[Array, Array], observation: Observation, key: Key) -> tuple[Array, tuple]:
    del key
    cutoffs, interval = memory
    first = last = jnp.zeros(observation.size.shape, jnp.int32)
    for index in range(cutoffs.shape[0]):
        first = first + (observation.size > cutoffs[index]).astype(jnp.int32)
        last = last + (observation.size >= cutoffs[index]).astype(jnp.int32)
    cost = after_backlog(observation)
    cost = jnp.where((interval >= first) & (interval <= last), cost, jnp.inf)
    return cheapest(observation, cost, -observation.speed), memory


def sita_e(small_to: str = "slowest") -> Scheduler:
    """Assign size intervals of equal load to processors: SITA-E (Harchol-Balter, Crovella, Murta 1999).

    Each processor serves one interval of sizes, cut so that all are utilised equally. Tasks of a size that a
    cut falls on belong to the intervals on both sides of it, and go where they complete first.

    Args:
      small_to: "slowest" or "fastest": which end of the processors, ordered by speed, gets small tasks.
    """
    checks.known("small_to", small_to, ("slowest", "fastest"))
    return with_memory("sita-e", partial(_intervals, small_to), _sita_e)


def _guard(
    big: int, big_to: str, share: float, env: Static, params: EnvParams, lanes: Lanes
) -> tuple[Array, Array]:
    """Return the largest size of a small task, and which processors take big ones."""
    speed = speeds(params)
    rank = jnp.argsort(jnp.argsort(speed if big_to == "slowest" else -speed, stable=True))
    guarded = rank < big
    part = jnp.where(guarded, speed, 0.0).sum() / speed.sum()
    small = jnp.clip(1.0 - share * part, 0.0, 1.0)[None]
    cutoff = load_cutoffs(params.size, small)
    below, up_to = around(params.size, cutoff)
    atom, nearer = below < up_to, (small - below <= up_to - small) | (up_to == 1.0)
    bearable = jnp.ravel(relative_load(env, params))[0] * (1.0 - below) < part
    cutoff = with_larger(cutoff, atom & nearer & bearable)[0]
    return cutoff, guarded.reshape(-1, *(1,) * len(lanes))


def _guarded_sita(memory: tuple[Array, Array], observation: Observation, key: Key) -> tuple[Array, tuple]:
    del key
    cutoff, guarded = memory
    cost = after_backlog(observation)
    cost = jnp.where((observation.size > cutoff) & ~guarded, jnp.inf, cost)
    return cheapest(observation, cost, -observation.speed), memory


def guarded_sita(big: int = 1, big_to: str = "slowest", share: float = 1.0) -> Scheduler:
    """Send big tasks only to some processors, small tasks wherever they complete first.

    A task is big if it belongs to the largest ones that together bring `share` times the work that the
    guarded processors can do in proportion to their speed. Within its processors a task goes where its wait
    + size / speed is smallest. Tasks of a size that the limit falls on are big if that comes nearer to the
    share, or if no others would be; unless the guarded processors could not do the work of all big ones.

    Args:
      big: number of processors that big tasks may use.
      big_to: "slowest" or "fastest" of the processors.
      share: of the guarded processors' part of the load, in (0, 1 / that part).
    """
    checks.at_least("big", big, 1)
    checks.known("big_to", big_to, ("slowest", "fastest"))
    checks.leaf("share", share, above=0)
    return with_memory("guarded-sita", partial(_guard, big, big_to, share), _guarded_sita)


def _admission_weight(env: Static, params: EnvParams, lanes: Lanes) -> Array:
    del lanes
    load = relative_load(env, params)
    rate = load * params.speed / params.size.mean()
    return rate / (2.0 * (1.0 - jnp.minimum(load, 0.99)))


def _fpi(weight: Array, observation: Observation, key: Key) -> tuple[Array, Array]:
    del key
    service = size_at_each(observation) / observation.speed
    completion = observation.wait + service
    cost = completion + weight * service * (completion + observation.wait)
    return cheapest(observation, cost, -observation.speed), weight


def fpi() -> Scheduler:
    """Follow First Policy Iteration (Hyytia, Penttinen, Aalto 2012): least cost of admission, now and later.

    One improvement step from a Bernoulli split in proportion to speed, under which queue i is an M/G/1 of
    arrival rate l_i and load r: with w the wait and x/s the service,
    (w + x/s) + l_i / (2 (1 - r)) ((w + x/s)^2 - w^2). The load r is capped at 0.99, where that is defined.
    """
    return with_memory("fpi", _admission_weight, _fpi)


def _card_start(
    band: float, threshold: float, bands: int, flexible: bool, env: Static, params: EnvParams, lanes: Lanes
) -> tuple[Array, Array, Array, Array]:
    """Return sizes that part the kinds of task, each kind's limit of a short wait, the long one, if it stays.

    Kinds are small, the bands of medium, and large.
    """
    del env, lanes
    speed = speeds(params)
    slowest = first_smallest(speed)
    part = 1.0 - speed[slowest] / speed.sum()
    fractions = jnp.linspace((1.0 - band) * part, 1.0 - (1.0 - band) * (1.0 - part), bands + 1)
    cutoffs = load_cutoffs(params.size, fractions)
    below, up_to = around(params.size, cutoffs)
    larger = (below < up_to) & (fractions - below < up_to - fractions)
    larger = jnp.where(cutoffs[0] == cutoffs[-1], jnp.arange(bands + 1) == 0, larger)
    factors = 2.0 - (2.0 * jnp.arange(bands, dtype=jnp.float32) + 1.0) / bands
    limits = threshold * factors * params.size.mean() / speed.mean()
    ends = jnp.full(1, jnp.inf, jnp.float32)
    return with_larger(cutoffs, larger), jnp.concatenate([ends, limits, -ends]), slowest, jnp.array(flexible)


def _card(memory: tuple[Array, ...], observation: Observation, key: Key) -> tuple[Array, tuple]:
    del key
    cutoffs, limits, slowest, flexible = memory
    o = observation
    long = jnp.where(flexible, first_smallest(-o.wait, o.speed), slowest)
    short_wait = jnp.where(processor_index(o.wait) == long, jnp.inf, o.wait)
    short = cheapest(o, short_wait, -o.speed)
    kind = (o.size > cutoffs.reshape(-1, *(1,) * o.size.ndim)).sum(0, dtype=jnp.int32)
    alone = o.speed.shape[0] == 1
    goes_short = (at_processor(short_wait, short) <= limits[kind]) & (not alone)
    if o.up is not None:
        barred = usable(o, jnp.zeros_like(o.wait), 1.0)
        goes_short = goes_short | (at_processor(barred, long) > 0)
    return jnp.where(goes_short, short, long), memory


def card(band: float = 0.2, threshold: float = 2.0, bands: int = 1, flexible: bool = False) -> Scheduler:
    """Follow CARD, Controlled Asymmetry Reduces Delay (Xie, Grosof, Scully 2024).

    One processor is long, the others short. Small tasks go to the short processor with the least wait, large
    ones to the long processor, medium ones to that short processor while its wait is at most a threshold,
    else to the long one. The cutoffs enclose the size at which large and small tasks would load long and
    short processors in proportion to their speed. The paper has equal processors; here the slowest is long.
    Tasks of a size that a cutoff falls on are on that side of it which comes nearer to its part of the work,
    and medium if all cutoffs fall on it. With several bands and flexible it is in the spirit of the paper's
    multi-band and flexible variants, whose details differ.

    Args:
      band: small tasks bring (1 - band) times the short processors' part of the work, large ones
        (1 - band) times the long one's part; in (0, 1).
      threshold: wait above which a short processor takes no medium task, in mean service times; of several
        bands the mean.
      bands: of medium tasks, of equal work; the larger the tasks, the lower the threshold, in equal steps.
      flexible: whether the long processor is the one with the longest wait at the moment, of equal ones the
        slowest.
    """
    checks.leaf("band", band, above=0, below=1)
    checks.leaf("threshold", threshold, above=0)
    checks.at_least("bands", bands, 1)
    return with_memory("card", partial(_card_start, band, threshold, bands, flexible), _card)


def _dice_start(
    limit: float, growth: float, last: str, env: Static, params: EnvParams, lanes: Lanes
) -> tuple[Array, Array]:
    """Return the place `[P, 1...]` of each processor in line, and the longest completion time it accepts."""
    del env
    speed = speeds(params)
    place = jnp.argsort(jnp.argsort(-speed if last == "slowest" else speed, stable=True))
    limits = limit * growth ** place.astype(jnp.float32) * params.size.mean() / speed.mean()
    limits = jnp.where(place == len(speed) - 1, jnp.inf, limits)
    shape = (-1, *(1,) * len(lanes))
    return place.astype(jnp.float32).reshape(shape), limits.reshape(shape)


def _dice(memory: tuple[Array, Array], observation: Observation, key: Key) -> tuple[Array, tuple]:
    del key
    place, limits = memory
    accepted = after_backlog(observation) <= limits
    return cheapest(observation, jnp.where(accepted, place, jnp.inf)), memory


def dice(limit: float = 4.0, growth: float = 2.0, last: str = "slowest") -> Scheduler:
    """Ask processors in turn; the first at which the task would be done soon enough gets it.

    A sequential policy, as in Hyytia and Righter (2022): so the first processors stay short, and large tasks
    and those that find much work go on to the last, which accepts all. Their processors are equal; here they
    are asked by speed, of equal speed the first one first.

    Args:
      limit: of the completion time at the first processor, in mean service times.
      growth: how much higher the limit of each next one is.
      last: "slowest" or "fastest": which end of the processors, ordered by speed, is asked last.
    """
    checks.leaf("limit", limit, above=0)
    checks.leaf("growth", growth, above=0)
    checks.known("last", last, ("slowest", "fastest"))
    return with_memory("dice", partial(_dice_start, limit, growth, last), _dice)
