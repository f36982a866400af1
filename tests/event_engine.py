"""Processors of any discipline in plain Python, event by event: what the package is held against."""

import math
from dataclasses import dataclass, field

import numpy as np

INTERRUPTING = {
    "lcfs-pr": lambda job: -job.number,
    "srpt": lambda job: job.left,
    "psjf": lambda job: job.size,
    "priority-preemptive": lambda job: job.priority,
    "edf": lambda job: job.arrival + job.deadline,
    "c-mu": lambda job: job.size / (4.0, 2.0, 0.5)[int(job.priority)],
}
WAITING = {
    "fcfs": lambda job: 0,
    "limited-ps": lambda job: 0,
    "sjf": lambda job: job.size,
    "priority": lambda job: job.priority,
}
"""Which task comes first; among equals that of the least number."""


@dataclass
class Job:
    """A task that a processor holds."""

    number: int
    arrival: float
    size: float
    priority: int
    deadline: float
    left: float
    started: bool = False


@dataclass
class Processor:
    """One processor; `capacity` says what n tasks get together.

    It takes up to `limit` tasks; they leave at their deadline, while "waiting", or "any".
    """

    discipline: str
    speed: float
    slots: int = 1
    capacity: object = None
    limit: float = math.inf
    leaving: str | None = None
    jobs: list = field(default_factory=list)

    def rates(self) -> list[tuple[Job, float]]:
        """Return which tasks are served now, and how fast."""
        jobs = self.jobs
        if self.discipline == "ps":
            served = list(jobs)
        elif self.discipline == "fb":
            least = min((job.size - job.left for job in jobs), default=0.0)
            served = [job for job in jobs if job.size - job.left <= least + 1e-9]
        elif self.discipline in INTERRUPTING:
            key = INTERRUPTING[self.discipline]
            served = sorted(jobs, key=lambda job: (key(job), job.number))[: self.slots]
        else:
            key = WAITING[self.discipline]
            served = sorted(jobs, key=lambda job: (not job.started, key(job), job.number))[: self.slots]
        for job in served:
            job.started = True
        if not served:
            return []
        alone = self.discipline not in ("ps", "fb", "limited-ps")
        together = len(served) if alone else self.capacity(len(served)) if self.capacity else 1.0
        return [(job, self.speed * together / len(served)) for job in served]

    def impatient(self, served: list[tuple[Job, float]]) -> list[tuple[float, Job]]:
        """Return which tasks may leave unserved, and when."""
        if self.leaving is None:
            return []
        busy = [job.number for job, _ in served] if self.leaving == "waiting" else []
        return [(job.arrival + job.deadline, job) for job in self.jobs if job.number not in busy]

    def run(self, now: float, time: float, done: dict[int, tuple[float, bool]]) -> None:
        """Serve for some time; write when tasks leave into `done`, and whether unserved."""
        passed = 0.0
        while served := self.rates():
            leaves, first = min(((job.left / rate, job.number) for job, rate in served))
            step = leaves
            if self.discipline == "fb":
                had = sorted(job.size - job.left for job in self.jobs)
                later = [one for one in had if one > had[0] + 1e-9]
                step = min(step, (later[0] - had[0]) / served[0][1] if later else math.inf)
            until, leaver = min(self.impatient(served), key=lambda pair: pair[0], default=(math.inf, None))
            if until - now - passed < min(step, time - passed):
                step = until - now - passed
                for job, rate in served:
                    job.left -= rate * step
                passed += step
                self.jobs.remove(leaver)
                done[leaver.number] = max(leaver.deadline, now + passed - leaver.arrival), True
                continue
            step = min(step, time - passed)
            for job, rate in served:
                job.left -= rate * step
            passed += step
            if step == leaves:
                (gone,) = (job for job in self.jobs if job.number == first)
                self.jobs.remove(gone)
                done[first] = now + passed - gone.arrival, False
            if passed >= time:
                return


def completions(tasks, actions, speed, discipline, slots=1, capacity=None) -> np.ndarray:
    """Return the completion time of each of `tasks` (leaves `[T]`) at the processors that got them.

    `slots` is a number, or a list of one for each processor.
    """
    each = np.broadcast_to(slots, len(speed)).tolist()
    processors = [
        Processor(discipline, float(one), own, capacity) for one, own in zip(speed, each, strict=True)
    ]
    return outcomes(tasks, actions, processors)[0]


def outcomes(tasks, actions, processors) -> tuple[np.ndarray, np.ndarray]:
    """Return the completion time of each task at its processor, and whether it was lost."""
    done, now = {}, 0.0
    columns = (
        np.asarray(leaf, np.float64) for leaf in (tasks.gap, tasks.size, tasks.priority, tasks.deadline)
    )
    for number, (gap, size, priority, deadline) in enumerate(zip(*columns, strict=True)):
        for processor in processors:
            processor.run(now, gap, done)
        now += gap
        chosen = processors[actions[number]] if actions[number] < len(processors) else None
        if chosen is None or len(chosen.jobs) >= chosen.limit:
            done[number] = math.inf, True
            continue
        chosen.jobs.append(Job(number, now, size, priority, deadline, size))
        chosen.rates()
    for processor in processors:
        processor.run(now, math.inf, done)
    times, lost = zip(*(done[number] for number in range(len(done))), strict=True)
    return np.array(times), np.array(lost)
