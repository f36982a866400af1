"""Films show the numbers of the simulation."""

import jax
import numpy as np
import pytest
from PIL import Image

import jaxlb
from jaxlb import workload
from jaxlb.cli import Render
from jaxlb.report import animation
from jaxlb.stations import fcfs as system


@pytest.fixture
def filmed(key):
    env, params = jaxlb.make("heavy-tail")
    schedulers = {name: jaxlb.scheduler(name) for name in ("rr", "lwr")}
    return env, params, schedulers, animation.film(env, params, schedulers, key, 60)


def at(seconds):
    return pytest.approx(seconds, abs=2e-3)


def test_a_film_shows_the_waits_of_the_system_at_any_time(filmed, key):
    env, params, schedulers, film = filmed
    task_key, act_key = jax.random.split(key)
    tasks = workload.sample(task_key, params, 60)
    arrival = np.cumsum(np.asarray(tasks.gap, np.float64)) - float(tasks.gap[0])
    advance, assign = jax.jit(system.advance), jax.jit(system.assign)
    for name, scheduler in schedulers.items():
        outcome = jaxlb.replay(env, params, scheduler, tasks, act_key)
        for index in (0, 7, 30, 58):
            now = 0.3 * arrival[index] + 0.7 * arrival[index + 1]
            # The same by the simulator's own steps, task by task.
            state = system.start(4, 64)
            for place in range(index + 1):
                state = advance(state, tasks.gap[place])
                state, *_ = assign(state, params.speed, tasks.size[place], outcome.action[place])
            state = advance(state, np.float32(now - arrival[index]))
            figure = film.show(now)
            bars = film.panels[name].patches
            top, area = np.zeros(4), np.zeros(4)
            for bar in bars:
                place = int(np.argmin(abs(film.left - bar.get_x())))
                top[place] = max(top[place], bar.get_y() + bar.get_height())
                area[place] += bar.get_height() * bar.get_width()
            np.testing.assert_allclose(top, state.wait, atol=2e-3)
            assert len(bars) == int(state.queue_length.sum())
            # Areas are work.
            unit = film.speed.max() / 0.9
            np.testing.assert_allclose(area * unit, np.asarray(state.wait * params.speed), atol=5e-3)
        assert film.figure is figure


def test_counters_and_flashes_tell_late_tasks_when_their_deadline_passes():
    tasks = jaxlb.Task(
        *(np.array(leaf) for leaf in ([5.0, 1.0, 1.0], [4.0, 2.0, 2.0], [0, 0, 0], [9.0, 4.0, 1.0]))
    )
    env, params = jaxlb.make("stable", speed=[1.0])
    outcome = jaxlb.replay(env, params, jaxlb.scheduler("rr"), tasks, jax.random.key(0))
    history = animation.History(tasks, outcome)
    # In service 0-4, 4-6, 6-8; due 9, 5, 3.
    assert history.count(2.9) == (3, 0, 0, pytest.approx(np.nan, nan_ok=True))
    assert history.count(3.0)[:3] == (3, 0, 1)
    assert history.count(5.0) == (3, 1, 2, 4.0)
    assert history.count(8.0) == (3, 3, 2, pytest.approx((4 + 5 + 6) / 3))
    queued = history.queued(5.0)
    assert (queued.task.tolist(), queued.start.tolist(), queued.remaining.tolist()) == (
        [1, 2],
        [0, 1],
        [1, 2],
    )
    assert queued.late.tolist() == [True, True] and history.queued(3.5).late.tolist() == [False, False, True]

    film = animation.Film({"rr": history}, np.asarray(tasks.size), np.array([1.0]), "three tasks")
    film.show(3.5, lit=True)
    faces = [bar.get_facecolor() for bar in film.panels["rr"].patches]
    assert [face == pytest.approx((0.84, 0.15, 0.16, 1.0), abs=0.01) for face in faces] == [
        False,
        False,
        True,
    ]
    film.show(3.5, lit=False)
    assert film.panels["rr"].patches[2].get_facecolor() == faces[1]  # as large, so of the same colour
    assert film.counters["rr"].get_text() == "0 of 3 tasks done, mean time nan\ndeadlines missed: 1"


def test_render_writes_a_gif_of_as_many_frames(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxlb.cli.render.NUM_FRAMES", 7)
    out = tmp_path / "a" / "b.gif"
    Render(schedulers="rr,lwr", tasks=40, load=0.8, out=out).run()
    with Image.open(out) as image:
        assert image.n_frames == 7 and image.size[0] > 500
        assert image.info["duration"] == pytest.approx(1000 / animation.FRAMES_PER_SECOND, abs=10)
    assert f"wrote {out}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "x.png"}, "--out .*x.png: must end in .gif or .mp4"),
        ({"out": "x.mp4"}, "--out .*x.mp4: needs ffmpeg, which is not installed"),
        ({"out": "x.gif", "schedulers": ","}, "--schedulers: must name at least one"),
        ({"out": "x.gif", "tasks": 1}, "tasks = 1: must be a whole number of at least 2"),
    ],
)
def test_bad_films_are_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(animation.animation.writers, "is_available", lambda name: name == "pillow")
    with pytest.raises(ValueError, match=message):
        Render(**options | {"out": tmp_path / options["out"]}).run()
