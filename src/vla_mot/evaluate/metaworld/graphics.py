"""What draws pictures where there is no display. MuJoCo reads the choice, MUJOCO_GL, when it is imported."""

import ctypes
import os
import sys
from collections.abc import Callable

from vla_mot.errors import ConfigError

VARIABLE = "MUJOCO_GL"


def choose() -> str:
    """Return the backend that MUJOCO_GL names; where it names none, the first of EGL and OSMesa that works, and set it.

    Raises ConfigError when none does, with what to install.
    """
    if given := os.environ.get(VARIABLE):
        return given
    working = next((name for name, works in _backends().items() if works()), None)
    if working is None:
        raise ConfigError(
            "Meta-World's pictures need EGL or OSMesa, and neither works here. Install one of them (Debian, Ubuntu: "
            "apt-get install libegl1 libgl1 libgl1-mesa-dri, or libosmesa6), or name another backend in the "
            f"environment variable {VARIABLE}."
        )
    os.environ[VARIABLE] = working
    return working


def _backends() -> dict[str, Callable[[], bool]]:
    if sys.platform == "darwin":
        return {"glfw": lambda: True}
    return {"egl": _has_egl_device, "osmesa": _has_osmesa}


def _has_egl_device() -> bool:
    """Whether libEGL knows a device to draw on, a graphics card or Mesa's software. Without a driver it knows none."""
    library = _library("libEGL.so.1")
    if library is None or _library("libOpenGL.so.0", "libGL.so.1") is None:
        return False
    library.eglGetProcAddress.restype = ctypes.c_void_p
    address = library.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return False
    count = ctypes.c_int(0)
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
    return bool(query(address)(0, None, ctypes.byref(count))) and count.value > 0


def _has_osmesa() -> bool:
    return _library("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so") is not None


def _library(*names: str) -> ctypes.CDLL | None:
    """The first of these that can be loaded."""
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
