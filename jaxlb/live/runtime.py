"""Decides in a live system, as a scheduler of jaxlb does in the simulator. Needs NumPy and nothing else.

`load(path)` reads what `jaxlb export --to npz` wrote:

    decider = load("universal.npz")
    processor = decider.decide(size=2.0, deadline=5.0, load=[0.0, 3.5], queue_length=[0, 2], age=0.25)
    ...
    decider.departed(processor, latency=1.75)

Sizes and loads are work, deadlines, ages and latencies time, in the units in which the speeds of processors
are work per time.
"""

import json
import math
import time as clock
from collections import deque
from typing import Any

import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: Any, first: Any, second: Any) -> tuple[Any, Any]:
    """Apply the block cipher of `jax.random`, threefry-2x32 of 20 rounds (Salmon et al. 2011)."""
    high, low = np.uint32(key[0]), np.uint32(key[1])
    keys = high, low, high ^ low ^ np.uint32(0x1BD11BDA)
    first, second = first + high, second + low
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            first = first + second
            second = first ^ ((second << np.uint32(distance)) | (second >> np.uint32(32 - distance)))
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3] + np.uint32(group + 1)
    return first, second


def quiet(function: Any) -> Any:
    """Let whole numbers overflow in silence, as they are meant to."""

    def called(*given: Any) -> Any:
        with np.errstate(over="ignore"):
            return function(*given)

    return called


@quiet
def bits(keys: np.ndarray, number: int, each: int) -> np.ndarray:
    """Return `each` random words of every one of `number` keys."""
    counter = np.arange(each, dtype=np.uint32)
    words = (threefry(key, np.zeros_like(counter), counter) for key in keys.reshape(number, 2))
    return np.concatenate([first ^ second for first, second in words])


@quiet
def split(key: np.ndarray, number: int) -> np.ndarray:
    """Return so many new keys."""
    counter = np.arange(number, dtype=np.uint32)
    return np.stack(threefry(key, np.zeros_like(counter), counter), 1).reshape(-1)


@quiet
def fold_in(key: np.ndarray, number: Any) -> np.ndarray:
    """Return the key of a number."""
    return np.stack(threefry(key, np.uint32(0), np.uint32(number)))


def put(x: np.ndarray, index: Any, new: Any, width: int, added: bool) -> np.ndarray:
    """Return `x` with another row at `index`, if there is one."""
    first = int(np.reshape(index, -1)[0]) * width
    if not 0 <= first < len(x):
        return x
    x = x.copy()
    x[first : first + width] = x[first : first + width] + new if added else new
    return x


def part(start: Any, size: int, whole: int) -> slice:
    """Return the slice of `size` entries that begins at `start`, or earlier so as to fit."""
    first = min(max(int(start), 0), whole - size)
    return slice(first, first + size)


def updated(x: np.ndarray, where: tuple[slice, ...], new: np.ndarray) -> np.ndarray:
    """Return `x` with another part."""
    x = x.copy()
    x[where] = new
    return x


class Decider:
    """A scheduler in a live system; it has a memory, which is that of one dispatcher.

    Attributes:
      about: what it is: scheduler, processors' speeds, what it reads.
      needs: names of the figures that `decide` must be given.
    """

    def __init__(self, about: dict[str, Any], source: str, arrays: dict[str, np.ndarray], seed: int = 0):
        """Make it from what was exported; `seed` is for schedulers that draw."""
        self.about, self.needs = about, tuple(about["needs"])
        self._speed = np.asarray(about["speed"], np.float32)
        names: dict[str, Any] = {
            **{
                "np": np,
                "bits": bits,
                "split": split,
                "fold_in": fold_in,
                "put": put,
                "part": part,
                "updated": updated,
            },
            **{name: array for name, array in arrays.items() if name.startswith("c")},
        }
        exec(source, names)  # the exported program: no more than what jaxlb wrote
        self._decide, self._departed = names["decide"], names.get("departed")
        first = [arrays[f"m{index}"] for index in range(about["state"])]
        self._first = [array[0] if array.size == 1 else array for array in first]
        self._key = np.asarray([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._state: list[Any] = list(self._first)
        self._count, self._last = 0, None
        self._sent: deque[tuple[float, int, float]] = deque()

    def decide(
        self,
        *,
        size: float | None = None,
        priority: int = 0,
        deadline: float | None = None,
        queue_length: Any = None,
        load: Any = None,
        age: float = 0.0,
        speed: Any = None,
        up: Any = None,
        present: Any = None,
        time: float | None = None,
    ) -> int:
        """Return the processor that the task goes to.

        Args:
          size: work.
          priority: 0 is the most urgent.
          deadline: time allowed from now.
          queue_length: tasks at each processor, as last measured.
          load: work at each processor, as last measured.
          age: time since that was measured.
          speed: of each processor, as last measured; None: as exported.
          up: whether each processor takes tasks; None: all do.
          present: tasks at each processor at this moment, for rules that probe.
          time: now; None: that of the system's clock, in seconds.

        Raises:
          ValueError: a figure is missing, or cannot be.
        """
        now = self._time(time)
        gap = 0.0 if self._last is None else now - self._last
        number, about = len(self._speed), self.about
        if not isinstance(priority, (int, np.integer)) or not 0 <= priority < about["classes"]:
            raise ValueError(
                f"priority = {priority!r}: must be a whole number from 0 to {about['classes'] - 1}"
            )
        mean = np.float32(about["mean_size"])
        work = self._number("size", size, above=True) if about["size_known"] else mean
        since = self._number("age", age)
        length = self._each("queue_length", queue_length)
        speeds = self._speed if speed is None else self._each("speed", speed, above=True)
        loads = self._each("load", load) if about["load_known"] else length * mean
        given: dict[str, Any] = {
            "gap": np.float32(gap),
            "size": work,
            "priority": np.int32(priority),
            "deadline": self._number("deadline", deadline, infinite=True),
            "queue_length": length.astype(np.int32),
            "load": loads,
            "wait": loads / speeds,
            "speed": speeds,
            "age": since,
            "up": np.ones(number, bool) if up is None else np.asarray(up, bool),
            "present": self._each("present", present).astype(np.int32),
            "load_average": loads.mean(dtype=np.float32),
            "load_variance": loads.var(dtype=np.float32),
            "assigned": self._assigned(now, float(since)),
        }
        if "key" in about["inputs"]:
            given["key"] = fold_in(self._key, self._count & 0xFFFFFFFF)
        if gap < 0:
            raise ValueError(f"time = {time!r}: must not go back from {self._last!r}; `reset` forgets that")
        if given["up"].shape != (number,):
            raise ValueError(f"up has shape {given['up'].shape}: must be ({number},), one for each processor")
        if not given["up"].any():
            raise ValueError("up: must be true of one processor at least")
        with np.errstate(all="ignore"):
            action, *self._state = self._decide(*self._state, *(given[name] for name in about["inputs"]))
        self._last, self._count = now, self._count + 1
        if "assigned" in about["inputs"]:
            self._sent.append((now, int(action), float(work)))
        return int(action)

    def departed(
        self,
        processor: int,
        *,
        latency: float,
        service: float | None = None,
        queue_length: int = 0,
        failed: bool = False,
        time: float | None = None,
    ) -> None:
        """Tell that a task has left that this dispatcher sent, or that a processor reports.

        Args:
          processor: where it was.
          latency: time since it arrived.
          service: time that it takes alone; None: its latency.
          queue_length: tasks that it left behind there.
          failed: whether it left unserved.
          time: when it left; None: now.
        """
        number = len(self._speed)
        if not isinstance(processor, (int, np.integer)) or not 0 <= processor < number:
            raise ValueError(f"processor = {processor!r}: must be a whole number from 0 to {number - 1}")
        now, took = self._time(time), self._number("latency", latency)
        given: dict[str, Any] = {
            "processor": np.int32(processor),
            "latency": took,
            "service": took if service is None else self._number("service", service),
            "failed": np.bool_(failed),
            "queue_length": np.int32(self._number("queue_length", queue_length)),
            "since": np.float32(0.0 if self._last is None else now - self._last),
        }
        if self._departed is None:
            return
        with np.errstate(all="ignore"):
            self._state = list(
                self._departed(*self._state, *(given[name] for name in self.about["departed_inputs"]))
            )

    def _assigned(self, now: float, age: float) -> np.ndarray:
        """Return the work sent to each processor since figures were measured, none if that is now."""
        measured = now - age * (1.0 + 1e-6)  # an age is rounded to single precision
        while self._sent and (age == 0 or self._sent[0][0] < measured):
            self._sent.popleft()
        assigned = np.zeros(len(self._speed), np.float32)
        for _, processor, work in self._sent:
            assigned[processor] += np.float32(work)
        return assigned

    def _time(self, value: Any) -> float:
        if value is None:
            return clock.monotonic()
        now = _float("time", value)
        if not math.isfinite(now):
            raise ValueError(f"time = {value!r}: must be finite")
        return now

    def _number(self, name: str, value: Any, above: bool = False, infinite: bool = False) -> np.float32:
        if value is None:
            if name in self.needs:
                raise ValueError(f"{name}: must be given, since {self.about['scheduler']!r} reads it")
            return np.float32(1.0)
        with np.errstate(over="ignore"):
            number = np.float32(_float(name, value))
        if not (number > 0 if above else number >= 0) or (np.isinf(number) and not infinite):
            bound = "above 0" if above else "at least 0"
            raise ValueError(f"{name} = {value!r}: must be {bound}{'' if infinite else ' and finite'}")
        return number

    def _each(self, name: str, values: Any, above: bool = False) -> np.ndarray:
        number = len(self._speed)
        if values is None:
            if name in self.needs:
                raise ValueError(f"{name}: must be given, since {self.about['scheduler']!r} reads it")
            return np.zeros(number, np.float32)
        try:
            array = np.asarray(values, np.float32)
        except (TypeError, ValueError):
            raise ValueError(f"{name} = {values!r}: must be a number for each processor") from None
        if array.shape != (number,):
            raise ValueError(f"{name} has shape {array.shape}: must be ({number},), one for each processor")
        if not (np.isfinite(array).all() and (array > 0 if above else array >= 0).all()):
            bound = "above 0" if above else "at least 0"
            raise ValueError(f"{name} = {values!r}: must be {bound} and finite, each of them")
        return array


def _float(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {value!r}: must be a number") from None


def load(path: Any, seed: int = 0) -> Decider:
    """Read what `jaxlb export --to npz` wrote; `seed` is for schedulers that draw.

    The file has a program, which runs: load only what you, or somebody you trust, have written.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    about = json.loads(str(arrays.pop("about")))
    return Decider(about, str(arrays.pop("source")), arrays, seed)
