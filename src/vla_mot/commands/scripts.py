"""What the long scripts of tools/ share: how they end, and how what they started ends with them."""

import ctypes
import signal
import sys
from collections.abc import Callable

from vla_mot.commands.main import STOPPED
from vla_mot.errors import ConfigError

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def run_script(main: Callable[[list[str]], None]) -> None:
    """Run a script that goes on where it was; SIGTERM and Ctrl-C end it in order, a ConfigError in a sentence."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")


def end_with_parent() -> None:
    """A `preexec_fn`: a training must not go on by itself when its script is killed, for the next one goes on with it.

    Only Linux tells a process that its parent died.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
