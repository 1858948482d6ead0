"""See, foresee, act: a Mixture-of-Transformers vision-language-action library.

`import vla_mot` is quick: torch and the model load when `vla_mot.Policy` is first used.
"""

from typing import TYPE_CHECKING, Any

from vla_mot.version import __version__

if TYPE_CHECKING:
    from vla_mot.infer.policy import Policy

__all__ = ["Policy", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Policy":
        from vla_mot.infer.policy import Policy

        return Policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
