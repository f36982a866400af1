"""Threads, in which programs compile side by side."""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor


@contextlib.contextmanager
def threads() -> Iterator[Executor]:
    """A thread for each core; an error or Ctrl-C does not wait for what has not begun."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
