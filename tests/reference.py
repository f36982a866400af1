"""An independent simulator: plain Python, float64, an event queue and an absolute clock."""

import heapq


def simulate(gaps, sizes, speeds, choose):
    """First-come-first-served processors fed by a dispatcher.

    `choose(index, queue_length, wait, service)` returns a processor. Departures at the very instant of an
    arrival happen before it. Yields, for each task, (action, wait, completion, queue lengths it found).
    """
    speeds = [float(speed) for speed in speeds]
    departures = []
    queue_length = [0] * len(speeds)
    free = [0.0] * len(speeds)
    now = 0.0
    for index, (gap, size) in enumerate(zip(gaps, sizes, strict=True)):
        now += float(gap)
        while departures and departures[0][0] <= now:
            queue_length[heapq.heappop(departures)[1]] -= 1
        wait = [max(at - now, 0.0) for at in free]
        service = [float(size) / speed for speed in speeds]
        action = choose(index, queue_length, wait, service)
        yield action, wait[action], wait[action] + service[action], list(queue_length)
        free[action] = max(free[action], now) + service[action]
        queue_length[action] += 1
        heapq.heappush(departures, (free[action], action))


def _smallest(costs, speeds=None):
    order = range(len(costs))
    return min(order, key=lambda i: (costs[i], -speeds[i] if speeds is not None else 0, i))


def chooser(name, speeds):
    """The rule `name`, written down once more."""
    speeds = [float(speed) for speed in speeds]
    return {
        "rr": lambda index, n, wait, service: index % len(speeds),
        "jsq": lambda index, n, wait, service: _smallest(n),
        "lwl": lambda index, n, wait, service: _smallest(wait, speeds),
        "greedy": lambda index, n, wait, service: _smallest(
            [w + s for w, s in zip(wait, service, strict=True)], speeds
        ),
        "sed": lambda index, n, wait, service: _smallest(
            [(k + 1) / speed for k, speed in zip(n, speeds, strict=True)], speeds
        ),
        "lwr": lambda index, n, wait, service: _smallest(wait),
    }[name]
