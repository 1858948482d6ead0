"""See, foresee, act: a Mixture-of-Transformers vision-language-action library.

`import vla_mot` is quick: torch and the model load when `vla_mot.Policy` is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vla_mot.version import __version__

if TYPE_CHECKING:
    from vla_mot.infer.chunking import Chunking
    from vla_mot.infer.policy import Policy
    from vla_mot.infer.runner import Runner
    from vla_mot.infer.session import Session

__all__ = ["Chunking", "Policy", "Runner", "Session", "__version__"]

_HOMES = {"Chunking": "chunking", "Policy": "policy", "Runner": "runner", "Session": "session"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"vla_mot.infer.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
