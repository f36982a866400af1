"""Where lanes lie: over the devices of one process or of several, and within `jax.shard_map`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlb import checks
from jaxlb.types import Array

DEVICES = "devices"
"""The axis of a mesh over which lanes, or seeds, are spread."""


def layout(leaf: Array, num_lanes: int) -> PartitionSpec:
    """Return the layout of an array of lanes, which has them last: spread over devices, others whole in each.

    What else ends in an axis of that length, by chance, is merely laid out differently.
    """
    lanes = leaf.ndim and leaf.shape[-1] == num_lanes
    return PartitionSpec(*(None,) * (leaf.ndim - 1), DEVICES) if lanes else PartitionSpec()


def spread(tree: Any, num_lanes: int) -> Any:
    """Spread arrays of lanes over as many devices as divide them."""
    devices = device_mesh(num_lanes)
    if devices.size == 1:
        return tree

    def is_key(leaf: Array) -> bool:
        return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    leaves, structure = jax.tree.flatten(tree)
    # `device_put` takes no keys to the devices of other processes, but what they are made of.
    data = [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in leaves]
    layouts = [PartitionSpec() if is_key(leaf) else layout(leaf, num_lanes) for leaf in leaves]
    put = jax.device_put(data, [NamedSharding(devices, one) for one in layouts])
    return structure.unflatten(
        jax.random.wrap_key_data(there, impl=jax.random.key_impl(leaf)) if is_key(leaf) else there
        for leaf, there in zip(leaves, put, strict=True)
    )


def over_devices(tree: Any, num_lanes: int) -> Any:
    """Spread arrays of lanes, in a traced program, over the devices of the mesh that is set.

    `jax.set_mesh(device_mesh(num_lanes))` sets it. Without one, lanes stay where they are.
    """
    if DEVICES not in jax.sharding.get_abstract_mesh().auto_axes:
        return differing(tree)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, layout(leaf, num_lanes)), tree)


def differing(tree: Any) -> Any:
    """Mark values as differing between devices within `jax.shard_map`, as its loops want all that they carry.

    Elsewhere, they stay as they are.
    """
    axes = jax.sharding.get_abstract_mesh().manual_axes
    if not axes:
        return tree
    # What is chosen by the device's number differs, to JAX, even if it is equal.
    here = jax.lax.axis_index(axes) >= 0
    return jax.tree.map(lambda leaf: jnp.where(here, leaf, leaf), tree)


def device_mesh(count: int) -> Mesh:
    """Return a mesh of as many devices as divide `count`, in a row, the same number of every process.

    Under `jax.set_mesh(device_mesh(num_lanes))` a trainer spreads its lanes over them.

    Raises:
      ValueError: several processes, and `count` is no multiple of their number.
    """
    processes = jax.process_count()
    checks.multiple("lanes", count, "processes", processes)
    part = count // processes
    used = max(number for number in range(1, jax.local_device_count() + 1) if part % number == 0)
    devices = [device for process in range(processes) for device in jax.local_devices(process)[:used]]
    return jax.make_mesh((len(devices),), (DEVICES,), (AxisType.Auto,), devices=devices)


def side_by_side(tree: Any, count: int) -> Any:
    """Spread leaves `[count, ...]`, keys and all, over as many devices as divide the count."""
    return jax.device_put(tree, NamedSharding(device_mesh(count), PartitionSpec(DEVICES)))


def at_hand(tree: Any) -> Any:
    """Return arrays with all their parts, where several devices or processes hold them; others as they are.

    So sums over lanes are taken in one order, however many devices there are.
    """
    if checks.traced(tree):
        meshed = DEVICES in jax.sharding.get_abstract_mesh().auto_axes
        return jax.lax.with_sharding_constraint(tree, PartitionSpec()) if meshed else tree
    if jax.process_count() == 1:
        return tree

    def gathered(leaf: Any) -> Any:
        # What is whole in every process is the same in all of them.
        whole = not isinstance(leaf, Array) or leaf.is_fully_addressable
        return leaf if whole else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(gathered, tree)
