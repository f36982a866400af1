"""Names for what users make. The tables of names are the only state that jaxlb has; nothing leaves them."""

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

from jaxlb import rewards, workload
from jaxlb.environments import add as add_scenario
from jaxlb.environments import scenarios
from jaxlb.scheduling import add as add_scheduler
from jaxlb.types import EnvParams, Scheduler


def register(name: str, factory: Callable[..., Any], **settings: Any) -> None:
    """Give a scenario, scheduler, part of a workload, network or reward of your own a name.

    What `factory()` makes tells which of them it is; the first line of its docstring describes it in lists.

    - `EnvParams`: a scenario, for `jaxlb.make` and Gymnasium. Its first parameter is `num_processors`, whose
      default is the scenario's.
    - `Scheduler`: for `jaxlb.scheduler`. Its parameters are the scheduler's options.
    - An arrival process, a size law, or a speed process: for `jaxlb.make(..., arrival=name)`, `size=name` or
      `speeds=name`. Parameters of the last are checked by `make`, which knows the processors.
    - A Flax module, or a `jaxlb.learn.networks.Network`, for the setting `network` of trainers.
    - A `jaxlb.rewards.Reward`, for `jaxlb.make(..., reward=name)` and the setting `reward`.

    Args:
      name: letters, digits, "-", "_" and ".".
      factory: a function or class that can be called without arguments.
      settings: static ones of a scenario: station and its settings (queue_capacity), size_visible,
        wait_visible, reward.

    Raises:
      ValueError: a name that another thing has or cannot be one, a factory that needs arguments or makes
        something else, settings of what is no scenario, parameters that are out of bounds.
    """
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError) as error:
        raise ValueError(f"factory = {factory!r}: must be callable without arguments ({error})") from None
    made = factory()
    if isinstance(made, EnvParams):
        add_scenario(name, factory, settings)
        _to_gymnasium(name)
        return
    if settings:
        raise ValueError(f"settings {', '.join(settings)}: only a scenario has any, and {name!r} is none")
    if isinstance(made, Scheduler):
        add_scheduler(name, factory)
    elif (part := workload.part_of(made)) is not None:
        workload.add(part, name, made, factory)
    elif hasattr(made, "init") and hasattr(made, "apply") and not isinstance(made, type):
        # It needs libraries that a simulation does not.
        from jaxlb.learn import networks

        networks.add(name, factory)
    elif isinstance(made, rewards.Reward):
        rewards.add(name, made)
    else:
        raise ValueError(
            f"the factory of {name!r} makes a {type(made).__name__}: must make EnvParams (a scenario), "
            "a Scheduler, an arrival process, a size law, a speed process, a Network, a Flax module or "
            "a Reward"
        )


def _to_gymnasium(name: str) -> None:
    """Register a scenario as jaxlb/NAME-v0 with `gymnasium.make` and `make_vec`, if Gymnasium is there."""
    if importlib.util.find_spec("gymnasium") is None:
        return
    import gymnasium

    if f"jaxlb/{name}-v0" in gymnasium.registry:  # the name was given again: it makes what is new
        return
    module = "jaxlb.interop.gymnasium_envs"
    gymnasium.register(
        id=f"jaxlb/{name}-v0",
        entry_point=f"{module}:LoadBalancingEnv",
        vector_entry_point=f"{module}:LoadBalancingVectorEnv",
        kwargs={"scenario": name},
    )


# Gymnasium 1.0 did away with plug-ins: a package registers its environments when it is imported.
for _name in scenarios():
    _to_gymnasium(_name)
