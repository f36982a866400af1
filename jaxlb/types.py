"""The pytrees that travel between the parts. No logic.

Shapes: P processors, C priority classes, K places in a queue's memory, `...` the trailing lane axes (none
for one environment, `[N]` for N lanes). Units: "time" and "work"; speed is work per time.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
from flax import struct

Array = jax.Array
Key = jax.Array
"""A typed key, as `jax.random.key` makes it."""
Lanes = tuple[int, ...]
"""Shape of the trailing lane axes: `()` or `(N,)`."""
Scalar = jax.Array | float
"""One number; a leaf that can be vmapped."""


class Task(struct.PyTreeNode):
    """What arrives."""

    gap: Array  # [...] time since the previous arrival
    size: Array  # [...] work
    priority: Array  # [...] int32, 0 is the most urgent
    deadline: Array  # [...] time allowed from arrival


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
    """The processors with what they hold, and what measures them."""

    station: Any  # state of the station
    monitor: MonitorState
    speeds: Any = None  # state of the speed process; None where speeds do not change


class Truth(struct.PyTreeNode):
    """What only the oracle, the metrics and training targets may use."""

    size: Array  # [...] work
    wait: Array  # [P, ...] time
    speed: Array  # [P, ...] work per time
    completion: Array | None = None  # [P, ...] time of each choice if nothing else arrives; None: FCFS


class Held(struct.PyTreeNode):
    """Tasks in the K places of processors, and what each takes without the task at hand and with it there."""

    known: Array  # [P, K, ...] bool, whether the place holds a task
    size: Array  # [P, K, ...] work
    priority: Array  # [P, K, ...] int32
    deadline: Array  # [P, K, ...] time
    without: Array  # [P, K, ...] completion time if nothing else arrives
    joined: Array  # [P, K, ...] the same if the task at hand goes to this processor


class Observation(struct.PyTreeNode):
    """What a scheduler sees when a task arrives."""

    gap: Array  # [...] time since the previous arrival
    size: Array  # [...] work; the law's mean where sizes are hidden
    priority: Array  # [...] int32
    deadline: Array  # [...] time
    load_average: Array  # [...] work, mean of `load` over processors
    load_variance: Array  # [...] work squared, variance of `load` over processors
    queue_length: Array  # [P, ...] int32
    load: Array  # [P, ...] work
    wait: Array  # [P, ...] time
    speed: Array  # [P, ...] work per time, the nominal one where there is one
    age: Array  # [...] time since these figures were measured
    assigned: Array  # [P, ...] work assigned since then
    truth: Truth
    up: Array | None = None  # [P, ...] bool, whether it worked, had room, may take the task; None: all
    affinity: Array | None = None  # [P, ...] factor of its speed for the task, 0: takes none; None: all 1
    completion: Array | None = None  # [P, ...] time of each choice if nothing else arrives; None: not seen
    held: Held | None = None  # the tasks that are there; None: not seen, or the task delays none


class Outcome(struct.PyTreeNode):
    """What became of a task; or what would if nothing else arrived, where only its departure tells.

    Under disciplines that interrupt tasks, or serve several at once, `service` is what a task takes alone,
    and `wait` all else. A task that is refused never completes; one that leaves unserved completes as it
    leaves, without service. Both miss their deadline.
    """

    action: Array  # [...] int32, the processor that got it
    wait: Array  # [...] time from arrival to start
    service: Array  # [...] time from start to departure
    completion: Array  # [...] time from arrival to departure
    violation: Array  # [...] bool, completion later than the deadline, or lost
    lost: Array | None = None  # [...] bool, refused or left unserved; None where no task ever is
    departures: Any = None  # Departures until the next arrival; None where all is known at the assignment


class Departures(struct.PyTreeNode):
    """Tasks that have left, or were refused, in M places."""

    known: Array  # [M, ...] bool, whether one has left from this place
    number: Array  # [M, ...] int32, of its assignment
    task: Task  # leaves [M, ...]; gaps are 0
    outcome: Outcome  # leaves [M, ...]


class EnvParams(struct.PyTreeNode):
    """Numbers of an environment. Every leaf can be vmapped and changed without recompiling.

    None switches a part of the monitor off, and its code with it.
    """

    speed: Any  # [P] work per time
    arrival: Any  # an ArrivalProcess, such as those of jaxlb.workload.arrivals
    size: Any  # a SizeLaw, such as those of jaxlb.workload.sizes
    nominal_speed: Any = None  # [P] speed that schedulers observe, right or wrong; None: the true one
    speeds: Any = None  # a SpeedProcess, such as those of jaxlb.workload.speeds; None: speeds never change
    affinity: Any = None  # [C, P] factor of each processor's speed for tasks of a class, 0: none; None: all 1
    load: Any = 0.8  # arrival rate x mean size / total speed
    class_probability: Any = (1.0,)  # [C] share of each priority class
    class_slack: Any = (4.0,)  # [C] deadline per (size / mean speed)
    deadline_constant: Any = 0.0  # time added to every deadline
    load_time_constant: Any = None  # time constant of the load's exponential smoothing; None: true backlog
    speed_time_constant: Any = None  # the same of observed speeds; None: of the moment, or `nominal_speed`
    measure_interval: Any = None  # time between two publications of the figures; None: always fresh
    measure_noise: Any = None  # standard deviation of the log of the figures' noise factor; None: exact
    completion_weight: Any = 1.0  # reward per completion time, to the power of `completion_exponent`
    completion_exponent: Any = None  # None: 1, without computing a power
    imbalance_weight: Any = 0.01  # reward per variance of the load over processors
    sla_weight: Any = 1.0  # reward per SLA violation; or [C], of each priority class
    loss_weight: Any = 1.0  # reward per task that is refused or leaves unserved, beside its violation
    max_steps_in_episode: Any = 1000  # tasks until an episode is truncated


class EnvState(struct.PyTreeNode):
    """State of an environment between two decisions: `task` has arrived and waits for its processor."""

    system: System
    task: Task
    workload: Any  # memory of the arrival process; () where tasks are replayed
    steps: Array  # [...] int32, tasks assigned in this episode


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


class ArrivalProcess(Protocol):
    """Makes gaps, and may have a part in the tasks. A pytree whose leaves are its parameters."""

    extra_words: int  # random words a task beyond the two that every task gets

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        ...

    def start(self, key: Key, lanes: Lanes) -> Any:
        """Draw the stationary state before the first arrival; the key is consumed."""
        ...

    def gap(self, state: Any, rate: Scalar, uniform: Array, extra: Array) -> tuple[Array, Any]:
        """Return the next gap `[...]` and the state after it."""
        ...

    def size(self, state: Any, drawn: Array, extra: Array) -> Array:
        """Return the size of the task that just arrived, given what the size law drew."""
        ...

    def priority(self, state: Any, drawn: Array) -> Array:
        """Return its priority, given what the class probabilities drew."""
        ...

    def deadline(self, state: Any, computed: Array) -> Array:
        """Return its deadline, given what size and class slack make it."""
        ...


@runtime_checkable
class SpeedProcess(Protocol):
    """Makes the factors, from 0 to 1, of speeds that change. A pytree whose leaves are its parameters."""

    @property
    def drains(self) -> bool:
        """Whether processors that take no tasks serve on, and so are sent none."""
        ...

    @property
    def interrupted(self) -> str:
        """What becomes of tasks as their processor goes down: one of `jaxlb.stations.INTERRUPTED`."""
        ...

    def check(self, num_processors: int) -> None:
        """Raise ValueError on a bad parameter."""
        ...

    def mean_stay(self) -> Array:
        """Return the mean time between two changes of a processor's factor."""
        ...

    def mean(self) -> Array:
        """Return the mean factor in the long run, `[P]` or `[1]`, 0 while a processor takes no tasks."""
        ...

    def mean_factor(self) -> Array:
        """Return the mean of `factor_of` in the long run, `[P]` or `[1]`."""
        ...

    def start(self, key: Key, num_processors: int, lanes: Lanes) -> Any:
        """Draw the state at any time; the key is consumed."""
        ...

    def factor_of(self, state: Any, num_processors: int) -> Array:
        """Return the present factors `[P, ...]`; at 0, no work is done."""
        ...

    def takes_tasks(self, state: Any, num_processors: int) -> Array:
        """Return which processors take tasks now, bool `[P, ...]`."""
        ...

    def until_change(self, state: Any, busy: Array) -> Array:
        """Return a time `[...]` in which no factor changes; after `busy` `[P, ...]` time, all is done."""
        ...

    def advance(self, state: Any, time: Array, busy: Array, key: Key) -> Any:
        """Let `time` `[...]` pass, at most until a change, which then happens; the key is consumed."""
        ...


class SizeLaw(Protocol):
    """A law of task sizes. A pytree whose leaves are its parameters."""

    def check(self) -> None:
        """Raise ValueError on a bad parameter."""
        ...

    def mean(self) -> Array:
        """Return the expected size, exact."""
        ...

    def second_moment(self) -> Array:
        """Return the expected squared size, exact."""
        ...

    def inverse_survival(self, uniform: Array) -> Array:
        """Return the size that is exceeded with probability `uniform`."""
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
      act: (variables, memory, observation, key) -> (action, memory); `action` is int32 of the lanes' shape.
    """

    name: str = struct.field(pytree_node=False)
    variables: Any
    start: Callable[[Static, EnvParams, Lanes], Any] = struct.field(pytree_node=False)
    act: Callable[[Any, Any, Observation, Key], tuple[Array, Any]] = struct.field(pytree_node=False)
