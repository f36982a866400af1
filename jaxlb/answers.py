"""What dispatchers hear of tasks that have left, and have of their own; shapes as in `jaxlb.types`."""

import jax
from flax import struct

Array = jax.Array


class Answers(struct.PyTreeNode):
    """Tasks that have left since the last arrival, in M places, as dispatchers hear of them.

    Attributes:
      known: `[M, ...]` bool, whether one has left from this place.
      word: `[M, ...]` uint32, random, of this task alone.
      dispatcher: `[M, ...]` int32, which one sent it.
      processor: `[M, ...]` int32.
      latency: `[M, ...]` time from arrival to departure, 0 if it was refused.
      service: `[M, ...]` time that it takes alone.
      failed: `[M, ...]` bool, refused or left unserved; None where no task ever is.
      ago: `[M, ...]` time since it left.
      left_behind: `[P, ...]` int32, tasks that are there now.
    """

    known: Array
    word: Array
    dispatcher: Array
    processor: Array
    latency: Array
    service: Array
    failed: Array | None
    ago: Array
    left_behind: Array


class Answer(struct.PyTreeNode):
    """One task that has left, as a dispatcher hears of it.

    Attributes:
      processor: `[...]` int32.
      latency: `[...]` time from arrival to departure, 0 if it was refused.
      service: `[...]` time that it takes alone.
      failed: `[...]` bool, refused or left unserved.
      queue_length: `[...]` int32, tasks that it left behind at its processor.
      since: `[...]` time from the dispatcher's last decision to the departure.
    """

    processor: Array
    latency: Array
    service: Array
    failed: Array
    queue_length: Array
    since: Array


class Dispatching(struct.PyTreeNode):
    """What D dispatchers have of their own, where there are several, or where departures are told.

    Attributes:
      seed: `[...]` uint32, which decides who gets which task.
      since: `[D, ...]` time since the last decision of each.
      answers: who has left since the last arrival; None where that is not told.
    """

    seed: Array
    since: Array
    answers: Answers | None = None
