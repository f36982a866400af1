"""Threads, in which programs compile side by side."""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor


@contextlib.contextmanager
def threads() -> Iterator[Executor]:
    """Open a pool of one thread a core.

    An error does not wait for what has not begun, Ctrl-C for nothing.
    """
    pool, wait = ThreadPoolExecutor(os.cpu_count()), True
    try:
        yield pool
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
