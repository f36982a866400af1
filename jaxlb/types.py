"""The pytrees that travel between the parts. No logic.

Shapes: P processors, C priority classes, K places in a queue's memory, `...` the trailing lane axes (none
for one environment, `[N]` for N lanes). Units: "time" and "work"; speed is work per time.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
from flax import struct

from jaxlb.answers import Answer, Answers, Dispatching
from jaxlb.phases import Phases

Array = jax.Array
Key = jax.Array
"""A typed key, as `jax.random.key` makes it."""
Lanes = tuple[int, ...]
"""Shape of the trailing lane axes: `()` or `(N,)`."""
Scalar = jax.Array | float
"""One number; a leaf that can be vmapped."""


class Task(struct.PyTreeNode):
    """What arrives.

    Attributes:
      gap: `[...]` time since the previous arrival.
      size: `[...]` work.
      priority: `[...]` int32, 0 is the most urgent.
      deadline: `[...]` time allowed from arrival.
      phases: of an inference server's task; None: it has one phase.
    """

    gap: Array
    size: Array
    priority: Array
    deadline: Array
    phases: Phases | None = None


class Report(struct.PyTreeNode):
    """What a monitor last published of each processor."""

    queue_length: Array  # [P, ...] int32, tasks in the system
    load: Array  # [P, ...] work, smoothed, possibly noisy
    wait: Array  # [P, ...] time, possibly noisy
    speed: Array | None = None  # [P, ...] of this moment; None where it does not change
    up: Array | None = None  # [P, ...] bool, whether it works and has room; None where all always do


class Publication(struct.PyTreeNode):
    """Figures that schedulers use until the next ones are published."""

    report: Report
    age: Array  # [...] time since they were published
    assigned: Array  # [P, ...] work assigned since, as the scheduler saw it


class MonitorState(struct.PyTreeNode):
    """Memory of the monitor. Parts that the parameters switch off are None."""

    smoothed: Array | None  # [P, ...] work, exponentially smoothed backlog
    published: Publication | None
    speed: Array | None = None  # [P, ...] exponentially smoothed speed


class System(struct.PyTreeNode):
    """The processors with what they hold, and what measures them.

    Attributes:
      station: state of the station.
      monitor: what it has measured.
      speeds: state of the speed process; None where speeds do not change.
    """

    station: Any
    monitor: MonitorState
    speeds: Any = None


class Truth(struct.PyTreeNode):
    """What only the oracle, the metrics and training targets may use.

    Attributes:
      size: `[...]` work.
      wait: `[P, ...]` time.
      speed: `[P, ...]` work per time.
      completion: `[P, ...]` time of each choice if nothing else arrives; None: FCFS.
    """

    size: Array
    wait: Array
    speed: Array
    completion: Array | None = None


class Held(struct.PyTreeNode):
    """Tasks in the K places of processors, and what each takes without the task at hand and with it there.

    Attributes:
      known: `[P, K, ...]` bool, whether the place holds a task.
      size: `[P, K, ...]` work.
      priority: `[P, K, ...]` int32.
      deadline: `[P, K, ...]` time.
      without: `[P, K, ...]` completion time if nothing else arrives.
      joined: `[P, K, ...]` the same if the task at hand goes to this processor.
    """

    known: Array
    size: Array
    priority: Array
    deadline: Array
    without: Array
    joined: Array


class Observation(struct.PyTreeNode):
    """What a scheduler sees when a task arrives.

    Attributes:
      gap: `[...]` time since the previous arrival.
      size: `[...]` work; the law's mean where sizes are hidden.
      priority: `[...]` int32.
      deadline: `[...]` time.
      load_average: `[...]` work, mean of `load` over processors.
      load_variance: `[...]` work squared, variance of `load` over processors.
      queue_length: `[P, ...]` int32.
      load: `[P, ...]` work.
      wait: `[P, ...]` time.
      speed: `[P, ...]` work per time, the nominal one where there is one.
      age: `[...]` time since these figures were measured.
      assigned: `[P, ...]` work assigned since then.
      truth: what only the oracle may use, and what training learns from.
      up: `[P, ...]` bool, whether it worked, had room, may take the task; None: all.
      affinity: `[P, ...]` factor of its speed for the task, 0: takes none; None: all 1.
      completion: `[P, ...]` time of each choice if nothing else arrives; None: not seen.
      held: the tasks that are there; None: not seen, or the task delays none.
      dispatcher: `[...]` int32, which one decides; None: there is one. Its schedulers see `gap`, `age` and
        `assigned` as it does: since its own last task, its own figures, what it sent itself.
      answers: who has left since the last arrival, for schedulers that have `departed`; None: not told.
      since: `[D, ...]` time since the last decision of each dispatcher; None: there is one, and it is `gap`.
      present: `[P, ...]` int32, tasks that are there now, for rules that probe processors, among those that
        have `departed`; None: not told.
    """

    gap: Array
    size: Array
    priority: Array
    deadline: Array
    load_average: Array
    load_variance: Array
    queue_length: Array
    load: Array
    wait: Array
    speed: Array
    age: Array
    assigned: Array
    truth: Truth
    up: Array | None = None
    affinity: Array | None = None
    completion: Array | None = None
    held: Held | None = None
    dispatcher: Array | None = None
    answers: Answers | None = None
    since: Array | None = None
    present: Array | None = None


class Outcome(struct.PyTreeNode):
    """What became of a task; or what would if nothing else arrived, where only its departure tells.

    Under disciplines that interrupt tasks, or serve several at once, `service` is what a task takes alone,
    and `wait` all else. A task that is refused never completes; one that leaves unserved completes as it
    leaves, without service. Both miss their deadline.

    Attributes:
      action: `[...]` int32, the processor that got it.
      wait: `[...]` time from arrival to start.
      service: `[...]` time from start to departure.
      completion: `[...]` time from arrival to departure.
      violation: `[...]` bool, completion later than the deadline, or lost.
      lost: `[...]` bool, refused or left unserved; None where no task ever is.
      departures: Departures until the next arrival; None where all is known at the assignment.
      first_token: `[...]` time from arrival to the first token, infinite until it is known; None: no phases.
    """

    action: Array
    wait: Array
    service: Array
    completion: Array
    violation: Array
    lost: Array | None = None
    departures: Any = None
    first_token: Array | None = None


class Departures(struct.PyTreeNode):
    """Tasks that have left, or were refused, in M places.

    Attributes:
      known: `[M, ...]` bool, whether one has left from this place.
      number: `[M, ...]` int32, of its assignment.
      task: leaves [M, ...]; gaps are 0.
      outcome: leaves [M, ...].
    """

    known: Array
    number: Array
    task: Task
    outcome: Outcome


class EnvParams(struct.PyTreeNode):
    """Numbers of an environment. Every leaf can be vmapped and changed without recompiling.

    None switches a part of the monitor off, and its code with it.

    Attributes:
      speed: `[P]` work per time.
      arrival: an ArrivalProcess, such as those of jaxlb.workload.arrivals.
      size: a SizeLaw, such as those of jaxlb.workload.sizes.
      nominal_speed: `[P]` speed that schedulers observe, right or wrong; None: the true one.
      speeds: a SpeedProcess, such as those of jaxlb.workload.speeds; None: speeds never change.
      affinity: `[C, P]` factor of each processor's speed for tasks of a class, 0: none; None: all 1.
      load: arrival rate x mean size / total speed.
      class_probability: `[C]` share of each priority class.
      class_slack: `[C]` deadline per (size / mean speed).
      deadline_constant: time added to every deadline.
      prefill: share of a task's work until its first token, where no trace tells; None: one phase.
      first_token_limit: time allowed from arrival to the first token; None: any.
      token_limit: time allowed after it per work; None: any.
      load_time_constant: time constant of the load's exponential smoothing; None: true backlog.
      speed_time_constant: the same of observed speeds; None: of the moment, or `nominal_speed`.
      measure_interval: time between two publications of the figures; None: always fresh.
      measure_noise: standard deviation of the log of the figures' noise factor; None: exact.
      completion_weight: reward per completion time, to the power of `completion_exponent`.
      completion_exponent: None: 1, without computing a power.
      imbalance_weight: reward per variance of the load over processors.
      sla_weight: reward per SLA violation; or [C], of each priority class.
      loss_weight: reward per task that is refused or leaves unserved, beside its violation.
      max_steps_in_episode: tasks until an episode is truncated.
    """

    speed: Any
    arrival: Any
    size: Any
    nominal_speed: Any = None
    speeds: Any = None
    affinity: Any = None
    load: Any = 0.8
    class_probability: Any = (1.0,)
    class_slack: Any = (4.0,)
    deadline_constant: Any = 0.0
    prefill: Any = None
    first_token_limit: Any = None
    token_limit: Any = None
    load_time_constant: Any = None
    speed_time_constant: Any = None
    measure_interval: Any = None
    measure_noise: Any = None
    completion_weight: Any = 1.0
    completion_exponent: Any = None
    imbalance_weight: Any = 0.01
    sla_weight: Any = 1.0
    loss_weight: Any = 1.0
    max_steps_in_episode: Any = 1000


class EnvState(struct.PyTreeNode):
    """State of an environment between two decisions: `task` has arrived and waits for its processor.

    Attributes:
      system: processors, and what measures them.
      task: that has arrived.
      workload: memory of the arrival process; () where tasks are replayed.
      steps: `[...]` int32, tasks assigned in this episode.
      dispatching: what dispatchers have of their own; None: one, and departures are not told.
    """

    system: System
    task: Task
    workload: Any
    steps: Array
    dispatching: Dispatching | None = None


class Static(Protocol):
    """What is settled of an environment before its numbers: `jaxlb.Env`, as a scheduler gets it."""

    @property
    def name(self) -> str:
        """Of the scenario."""
        ...

    @property
    def num_processors(self) -> int:
        """P."""
        ...

    @property
    def station(self) -> Any:
        """How processors serve, a `jaxlb.stations.Station`."""
        ...

    def bearable_load(self, params: EnvParams) -> float:
        """Return the load below which some rule keeps queues from growing."""
        ...

    @property
    def admission(self) -> bool:
        """Whether a scheduler may refuse a task, which is action P."""
        ...

    @property
    def sheds(self) -> bool:
        """Whether tasks may be refused, or leave, so that queues end however high the load."""
        ...

    def loses(self, params: EnvParams) -> bool:
        """Return whether a task may be refused, or leave unserved, or be lost in a failure."""
        ...

    @property
    def size_visible(self) -> bool:
        """Whether a task's size is seen; if not, the law's mean."""
        ...

    @property
    def wait_visible(self) -> bool:
        """Whether load and wait are seen; if not, they are inferred from queue lengths."""
        ...

    @property
    def dispatchers(self) -> int:
        """D, each of which gets some of the tasks and sees what it did itself."""
        ...

    @property
    def in_turn(self) -> bool:
        """Whether tasks come to dispatchers in turn, and not at random."""
        ...

    @property
    def polled_apart(self) -> bool:
        """Whether figures are published to each dispatcher at another time."""
        ...

    @property
    def answers(self) -> bool:
        """Whether schedulers are told who has left."""
        ...


class Scheduler(struct.PyTreeNode):
    """A dispatching policy: pure functions, and the variables they need.

    The functions are static, the variables leaves: a scheduler may be passed to `jax.jit`, vmapped over its
    variables, and pickled if its functions are those of a module.

    Attributes:
      name: what tables call it.
      variables: learned weights, any pytree; `()` for a scheduler that learns nothing.
      start: (env, params, lanes) -> memory, what it carries from task to task; of the static `env` it may use
        what `Static` has.
      act: (variables, memory, observation, key) -> (action, memory); `action` is int32 of the lanes' shape,
        the index of a processor, and one out of range counts as the nearest.
      departed: (variables, memory, answer) -> memory, called as each task leaves that this dispatcher sent,
        in the order in which they leave; None: it learns nothing of them. Then `lanes` are `()` in all three.
      told: (memories of all dispatchers, a random word) -> which of them hears of a departure, where that is
        not the one that sent the task, as processors report to any.
    """

    name: str = struct.field(pytree_node=False)
    variables: Any
    start: Callable[[Static, EnvParams, Lanes], Any] = struct.field(pytree_node=False)
    act: Callable[[Any, Any, Observation, Key], tuple[Array, Any]] = struct.field(pytree_node=False)
    departed: Callable[[Any, Any, Answer], Any] | None = struct.field(pytree_node=False, default=None)
    told: Callable[[Any, Array], Array] | None = struct.field(pytree_node=False, default=None)

    def __repr__(self) -> str:
        """Return its name, and how many numbers it has learned."""
        count = sum(getattr(leaf, "size", 1) for leaf in jax.tree.leaves(self.variables))
        return f"Scheduler({self.name!r}, {count:,} variables)"
