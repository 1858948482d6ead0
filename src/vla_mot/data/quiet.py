"""Keeps the media libraries from talking over our messages: progress bars, libav's log, a failed decoder."""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

log = logging.getLogger(__name__)


@contextmanager
def quiet_media() -> Iterator[None]:
    """Inside, libav reports only errors and `datasets` draws no progress bars."""
    import av
    import datasets

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    av.logging.set_libav_level(av.logging.ERROR)
    try:
        yield
    finally:
        av.logging.set_libav_level(av.logging.INFO)
        if not bars:
            datasets.enable_progress_bars()


@cache
def video_backend() -> str:
    """Name the decoder that works here: `torchcodec`, which needs FFmpeg's libraries, or `pyav`."""
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        log.info("videos are decoded with pyav: torchcodec cannot be loaded (%s)", str(error).split("\n")[0])
        return "pyav"
    return "torchcodec"
