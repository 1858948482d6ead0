"""Keeps the media libraries from talking over our messages: progress bars, libav's log."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
"""How many threads are inside `quiet_libav`: the last one that leaves gives libav its voice back."""


@contextmanager
def quiet_libav() -> Iterator[None]:
    """Inside, libav reports only errors."""
    import av

    global _inside
    with _lock:
        _inside += 1
        av.logging.set_libav_level(av.logging.ERROR)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                av.logging.set_libav_level(av.logging.INFO)


@contextmanager
def quiet_media() -> Iterator[None]:
    """Inside, libav reports only errors and `datasets` draws no progress bars."""
    import datasets

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with quiet_libav():
            yield
    finally:
        if not bars:
            datasets.enable_progress_bars()
