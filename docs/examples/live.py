"""Real HTTP servers behind a router that runs `jaxlb.decider`, and the simulator on the same requests.

Run it with `python docs/examples/live.py [requests]`. Servers are processes on the loopback, each with a
queue, first come, first served, and a speed; serving is sleeping. The router polls their loads now and then,
sends each request where the decider says, and measures when answers come back. It ends by itself, in about a
minute a rule; nothing else should run meanwhile.
"""

import asyncio
import json
import multiprocessing
import sys

import jax
import numpy as np

import jaxlb

RULES = ("rr", "lwr", "peak-ewma", "universal")
SPEEDS, LOAD, POLLS = (0.5, 1.0, 1.0, 1.5), 0.7, 1.0
UNIT = 0.1
"""Seconds that a request of size 1 takes a server of speed 1: the unit of time in the simulator."""
REPLAYS, SHAKEN = 64, 0.002
"""Replays in which requests come up to so many seconds late: one that comes first may come second, and a
choice that is close goes the other way. How far figures lie apart then, live ones may lie from theirs."""


async def serve(speed, port):
    """Serve one request after the other at a speed, and tell the work that is left; send the port first."""
    loop, free, unfinished = asyncio.get_running_loop(), 0.0, 0

    async def work(size):
        nonlocal free, unfinished
        free = max(free, loop.time()) + size / speed * UNIT
        unfinished += 1
        await asyncio.sleep(free - loop.time())
        unfinished -= 1

    async def answer(reader, writer):
        while request := await reader.readline():
            while (await reader.readline()).strip():  # headers
                pass
            path = request.split()[1].decode()
            if path.startswith("/work/"):
                await work(float(path.removeprefix("/work/")))
            left = max(free - loop.time(), 0.0) * speed / UNIT
            body = json.dumps({"load": left, "queue_length": unfinished}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def run_server(speed, port):
    """Be a server, until it is terminated."""
    asyncio.run(serve(speed, port))


class Client:
    """Connections to one server, kept open."""

    def __init__(self, port):
        """Take the port."""
        self.port, self.idle, self.writers = port, [], []

    async def get(self, path):
        """Ask, and return what the answer says."""
        if self.idle:
            reader, writer = self.idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.writers.append(writer)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.split(b"Content-Length: ")[1].split()[0]))
        self.idle.append((reader, writer))
        return json.loads(body)


async def route(decider, tasks, ports):
    """Send every request when it is due; return where they went, and how long they took in units of time."""
    clients, loop, count = [Client(port) for port in ports], asyncio.get_running_loop(), len(tasks.size)
    action, completion = np.zeros(count, int), np.zeros(count)
    figures = {}

    async def poll():
        asked = loop.time()
        found = await asyncio.gather(*(client.get("/metrics") for client in clients))
        figures.update(at=asked, **{name: [one[name] for one in found] for name in found[0]})

    async def send(index, size, began):
        await clients[action[index]].get(f"/work/{size}")
        completion[index] = (loop.time() - began) / UNIT
        decider.departed(int(action[index]), latency=completion[index], time=loop.time() / UNIT)

    async def keep_polling(start):
        for turn in range(1, 1_000_000):
            await asyncio.sleep(start + turn * POLLS * UNIT - loop.time())
            await poll()

    await asyncio.gather(*(client.get("/metrics") for client in clients))  # connects
    await poll()
    start, sent = figures["at"], []
    polling = asyncio.create_task(keep_polling(start))
    due = start + UNIT * np.cumsum(tasks.gap)
    for index, at in enumerate(due):
        await asyncio.sleep(at - loop.time())
        now = loop.time()
        size = float(tasks.size[index])
        action[index] = decider.decide(
            size=size,
            deadline=float(tasks.deadline[index]),
            load=figures["load"],
            queue_length=figures["queue_length"],
            age=(now - figures["at"]) / UNIT,
            time=now / UNIT,
        )
        sent.append(asyncio.create_task(send(index, size, now)))
    await asyncio.gather(*sent)
    if polling.done():
        polling.result()  # it ends by an error only
    polling.cancel()
    for client in clients:
        for writer in client.writers:
            writer.close()
            await writer.wait_closed()
    return action, completion


def measured(decider, tasks):
    """Start servers, send the requests, stop the servers; return what `route` does."""
    context, servers, ports = multiprocessing.get_context("spawn"), [], []
    try:
        for speed in SPEEDS:
            ours, theirs = context.Pipe()
            servers.append(context.Process(target=run_server, args=(speed, theirs), daemon=True))
            servers[-1].start()
            theirs.close()  # so that a server that ends sends its end
            ports.append(ours)
        ports = [ours.recv() for ours in ports]
        return asyncio.run(route(decider, tasks, ports))
    finally:
        for server in servers:
            server.terminate()
            server.join()


def figures_of(completion, deadline):
    """Return mean and 95th percentile of completion, and the share of violations in percent."""
    late = 100.0 * (completion > deadline).mean(-1)
    return np.array([completion.mean(-1), np.quantile(completion, 0.95, -1), late])


def shaken(tasks):
    """Return the tasks for every replay, as late as a network lets them be: a millisecond or so."""
    rng = np.random.default_rng(0)
    at = np.cumsum(tasks.gap)[:, None] + rng.uniform(0.0, SHAKEN / UNIT, (len(tasks.gap), REPLAYS))
    each = jax.tree.map(lambda leaf: np.repeat(leaf[:, None], REPLAYS, 1), tasks)
    gap = np.diff(np.sort(at, 0), axis=0, prepend=0.0)
    return each.replace(gap=gap.astype(np.float32))


def main(requests=1500, rules=RULES):
    """Compare live and simulated figures of each rule; return them by its name."""
    env, params = jaxlb.make(
        speed=list(SPEEDS),
        load=LOAD,
        size="exponential",
        class_slack=[0.0],
        deadline_constant=4.0,
        measure_interval=POLLS,
        title="live",
    )
    tasks = jax.tree.map(np.asarray, jaxlb.workload.sample(jax.random.key(0), params, requests))
    found = {}
    print(f"{'rule':10} {'mean':>22} {'p95':>22} {'violations %':>22} {'same':>9}")
    for rule in rules:
        decider = jaxlb.decider(rule, env=env, params=params)
        action, completion = measured(decider, tasks)
        replays = jaxlb.replay(env, params, rule, shaken(tasks), jax.random.key(1))
        simulated = figures_of(np.asarray(replays.completion).T, tasks.deadline)
        live = figures_of(completion, tasks.deadline)
        same = 100.0 * (action[:, None] == np.asarray(replays.action)).mean()
        pairs = zip(live, simulated.mean(1), simulated.std(1), strict=True)
        cells = [f"{own:6.2f} / {of:6.2f} ±{sd:4.2f}" for own, of, sd in pairs]
        print(f"{rule:10} {cells[0]:>22} {cells[1]:>22} {cells[2]:>22} {same:7.0f} %", flush=True)
        found[rule] = live, simulated
    print(f"Live / mean of {REPLAYS} replays ± standard deviation among them. A service: {1e3 * UNIT:g} ms.")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
