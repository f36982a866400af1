"""Files of arrays that describe themselves: a line of JSON, then the arrays as they lie in memory.

    {"format": 1, ..., "arrays": [["network/params/Dense_0/kernel", "<f4", [64, 32]], ...]}

Reading one executes nothing that it holds.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxlb import files

FORMAT = 1


def write(path: Path, about: Mapping[str, Any], tree: Any) -> None:
    """Write a pytree of arrays, and a description of it; killed on the way, the old content stays."""
    arrays = {name: _plain(leaf) for name, leaf in _named(tree)}
    # What NumPy has no letter for, such as bfloat16, has a name.
    kinds = {
        name: array.dtype.name if array.dtype.kind == "V" else array.dtype.str
        for name, array in arrays.items()
    }
    table = [[name, kinds[name], list(array.shape)] for name, array in arrays.items()]
    header = {"format": FORMAT, **about, "arrays": table}
    with files.replacing(path) as new, new.open("wb") as file:
        file.write(json.dumps(header, allow_nan=False).encode() + b"\n")
        for array in arrays.values():
            file.write(array.tobytes())


def about(path: Path) -> dict[str, Any]:
    """Read a file's description of itself.

    Raises:
      ValueError: it is none, cannot be read, or is of a format that this version does not know.
    """
    with _opened(path) as file:
        return _header(path, file)


def read(path: Path, like: Any) -> Any:
    """Read the pytree in a file, as NumPy's arrays, and keys as JAX's.

    Args:
      path: of the file.
      like: a pytree of the same structure, whose leaves have any shape.

    Raises:
      ValueError: as `about`, or its arrays are others than `like` has.
    """
    with _opened(path) as file:
        header, arrays = _header(path, file), {}
        try:
            table = [(name, jnp.dtype(kind), shape) for name, kind, shape in header["arrays"]]
            sizes = [kind.itemsize * math.prod(shape) for _, kind, shape in table]
            if sum(sizes) != path.stat().st_size - file.tell():
                raise ValueError("it is cut off, or longer than it says")
            for (name, kind, shape), size in zip(table, sizes, strict=True):
                arrays[name] = np.frombuffer(file.read(size), kind).reshape(shape)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: cannot be read: {error}") from None
    wanted = _named(like)
    if {name for name, _ in wanted} != set(arrays):
        differing = sorted({name for name, _ in wanted} ^ set(arrays))
        raise ValueError(
            f"{path}: cannot be read: {', '.join(differing[:3])} is in it or is wanted, not both"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [_like(arrays[name], leaf) for name, leaf in wanted])


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(place, simple=True, separator="/"), leaf) for place, leaf in leaves]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> np.ndarray:
    leaf = jnp.asarray(leaf)
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return array if array.dtype.kind == "V" else array.astype(array.dtype.newbyteorder("<"))


def _like(array: np.ndarray, leaf: Any) -> Any:
    return jax.random.wrap_key_data(jnp.asarray(array)) if _is_key(leaf) else array


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def _header(path: Path, file: BinaryIO) -> dict[str, Any]:
    try:
        header = json.loads(file.readline(2**24).decode())
        number = header["format"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    if number != FORMAT:
        raise ValueError(
            f"{path}: of format {number!r}, this jaxlb reads format {FORMAT}: install a newer one"
        )
    return header
