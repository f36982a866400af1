"""Bounds of an environment's parameters, and what of them has to agree: all is refused before tracing."""

from typing import Any

import numpy as np

from jaxlb import checks, rewards, stations, theory, workload
from jaxlb.params import VECTORS
from jaxlb.types import EnvParams, Lanes, Static


def check(env: Any, params: EnvParams, lanes: Lanes | None) -> None:
    """Raise ValueError if a parameter is out of bounds, or two do not agree; values under a trace pass.

    Args:
      env: a `jaxlb.Env`.
      params: of it.
      lanes: shape of the lane axes that they will meet; None: not known yet.
    """
    nominal = params.speed if params.nominal_speed is None else params.nominal_speed
    for name, value in (("speed", params.speed), ("nominal_speed", nominal)):
        if np.shape(value)[:1] != (env.num_processors,):
            raise ValueError(
                f"{name} has shape {np.shape(value)}: must be ({env.num_processors},), one for each processor"
            )
        checks.leaf(name, value, above=0)
    classes, slacks = np.shape(params.class_probability), np.shape(params.class_slack)
    if not classes or classes[0] < 1 or slacks[:1] != classes[:1]:
        raise ValueError(
            f"class_probability has shape {classes}, class_slack {slacks}: "
            "must both be (C,), one entry for each priority class"
        )
    discipline = getattr(env.station, "discipline", None)
    known = getattr(discipline, "classes", None)
    if known not in (None, classes[0]):
        raise ValueError(f"weights: must be {classes[0]}, one for each priority class, not {known}")
    slots = getattr(discipline, "slots", None)
    if isinstance(slots, tuple) and len(slots) != env.num_processors:
        raise ValueError(
            f"slots = {slots}: must be one number, or one for each of the {env.num_processors} processors"
        )
    rewards.check(params, classes[0], lanes)
    checks.leaf("load", params.load, above=0)
    checks.leaf("class_probability", params.class_probability, low=0)
    if not checks.traced(params.class_probability):
        total = np.asarray(params.class_probability, np.float64).sum(0)
        if np.any(np.abs(total - 1.0) > 1e-4):
            off = np.ravel(total)[np.abs(np.ravel(total) - 1.0).argmax()]
            raise ValueError(f"class_probability sums to {off:g}: must sum to 1")
    for name in ("class_slack", "deadline_constant"):
        checks.leaf(name, getattr(params, name), low=0)
    if params.speed_time_constant is not None and (params.speeds is None or params.nominal_speed is not None):
        raise ValueError(
            "speed_time_constant: must be None unless speeds change and there is no nominal_speed: then "
            "there is nothing to measure"
        )
    for name in ("load_time_constant", "measure_interval", "speed_time_constant"):
        if getattr(params, name) is not None:
            checks.leaf(name, getattr(params, name), above=0)
    if params.measure_noise is not None:
        checks.leaf("measure_noise", params.measure_noise, low=0)
    _check_phases(env, params)
    if params.affinity is not None:
        _check_affinity(env, params, classes[0])
    grows = not env.allow_overload and not env.sheds and not checks.traced(params.load)
    if grows and np.any(np.asarray(params.load) >= (most := bearable_load(env, params))):
        bound = (
            f"{most:g}" if params.affinity is None else f"{most:g}, what processors can do with this affinity"
        )
        raise ValueError(
            f"load = {np.max(params.load):g}: must be below {bound}, or queues grow for ever; allow_overload "
            "(--allow-overload) permits it"
        )
    steps = params.max_steps_in_episode
    checks.leaf("max_steps_in_episode", steps, whole=True, low=1, high=checks.MAX_COUNT)
    check_lanes(params, lanes)
    workload.check(params, lanes)
    checks.leaf("loss_weight", params.loss_weight, low=0)
    moves = params.speeds is not None and (params.speeds.drains or params.speeds.interrupted == "handed-over")
    if env.answers and moves:
        raise ValueError(
            "answers: must be False where tasks are handed over, or processors drain: a dispatcher would not "
            "know where its tasks went; choose schedulers that hear of no departures"
        )
    if env.answers and not hasattr(env.station, "ages"):
        raise ValueError(
            f"station = {checks.shown(env.station)}: must hold tasks until they leave, as "
            "jaxlb.stations.Table() does, where answers = True"
        )
    if params.speeds is not None or env.loses(params):
        _check_changes(env, "speeds change" if params.speeds is not None else "tasks may be lost")
    if params.speeds is not None:
        stations.check_interrupted(params.speeds.interrupted, env.station)
        if params.speeds.interrupted == "handed-over" and params.affinity is not None:
            raise ValueError(
                "affinity: must be None where tasks are handed over, wherever least is to be done"
            )


def bearable_load(env: Static, params: EnvParams) -> float:
    """Return the load below which some rule keeps queues from growing, in the worst of several lanes.

    With affinity, values under a trace count as if all were 1.
    """
    most, affinity = np.asarray(env.station.most, np.float64), params.affinity
    parts = params.speed, params.class_probability, affinity
    if checks.traced(parts) or (affinity is None and most.ndim == 0):
        return float(most.max())
    factor = np.ones((1, env.num_processors)) if affinity is None else np.asarray(affinity, np.float64)
    share = np.ones(1) if affinity is None else params.class_probability
    each = most.reshape(-1, *(1,) * (factor.ndim - 2)) if most.ndim else most
    return theory.bearable_load(params.speed, share, factor * each)


def _check_affinity(env: Static, params: EnvParams, num_classes: int) -> None:
    """Raise ValueError unless tasks of every class may go somewhere."""
    expected = (num_classes, env.num_processors)
    try:
        shape = np.shape(params.affinity)
    except ValueError:  # rows of different lengths
        shape = None
    if shape is None or shape[:2] != expected:
        raise ValueError(
            f"affinity has shape {shape}: must be {expected}, a row for each priority class, in "
            "it a factor for each processor"
        )
    checks.leaf("affinity", params.affinity, low=0)
    if not checks.traced(params.affinity) and not np.all(np.any(np.asarray(params.affinity) > 0, 1)):
        raise ValueError("affinity = 0 in a whole row: must be above 0 somewhere, or its tasks go nowhere")


def _check_changes(env: Any, why: str) -> None:
    """Raise ValueError if speeds that change, or tasks that are lost, do not go with the rest."""
    if env.station.settled:
        raise ValueError(
            f"station = {checks.shown(env.station)}: must be a table where {why}, as "
            "jaxlb.stations.Table() is for first come, first served"
        )
    if not hasattr(env.reward, "surprise"):
        raise ValueError(
            f"reward = {checks.shown(env.reward)}: must be 'weighted', or have `surprise` as that has, "
            f"where {why}"
        )


def _check_phases(env: Any, params: EnvParams) -> None:
    """Raise ValueError unless phases of tasks, if they have any, are what the station keeps account of."""
    for name in ("first_token_limit", "token_limit"):
        if (limit := getattr(params, name)) is not None:
            checks.leaf(name, limit, above=0, infinite=True)
            if params.prefill is None:
                raise ValueError(f"{name}: must be None where prefill is: there is no first token")
    phased = getattr(env.station, "phased", False)
    if params.prefill is None:
        if phased:
            raise ValueError("prefill: must be a number, as the environment was made for two phases")
        return
    checks.leaf("prefill", params.prefill, low=0, high=1)
    if not phased:
        raise ValueError("prefill: the environment was made without; jaxlb.make(..., prefill=0.2) makes one")
    if params.speeds is not None or env.loses(params) or params.affinity is not None:
        raise ValueError(
            "prefill: must be None where speeds change, tasks are lost, or differ from processor to processor"
        )


def check_lanes(params: EnvParams, lanes: Lanes | None) -> None:
    """Raise ValueError if a parameter has lane axes that do not fit, which is known under a trace too."""
    shapes = {name: np.shape(getattr(params, name)) for name in params.__dataclass_fields__}
    for name in VECTORS:
        shapes[name] = shapes[name][1:]
    shapes["affinity"] = shapes["affinity"][2:]
    # Arrival process and size law have axes of their own kind.
    checks.lane_axes(shapes | {"arrival": (), "size": (), "speeds": ()}, lanes)
