"""What a robot does at a control step for which there is no action: it holds still, for as long as it may.

Legend: `B` robots, `S`/`D` real state and action dims.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from vla_mot.errors import ConfigError
from vla_mot.infer.inference import LateInferenceError
from vla_mot.options import at_least
from vla_mot.robots.embodiment import Embodiment

Hold = Callable[[Tensor], Tensor]
"""State `(B, S)` in physical units → the action `(B, D)` that keeps the robot where it is."""


class Holding:
    """Repeats the last action, and before the first one commands the present state, see `still_dimensions`.

    hold: what to command before the first action instead.
    max_late: this many steps in a row may be without an action; None: any number.
    """

    def __init__(self, embodiment: Embodiment, hold: Hold | None = None, max_late: int | None = None) -> None:
        if max_late is not None:
            at_least(0, {"max_late": max_late})
        self._embodiment, self._hold, self._max_late = embodiment, hold, max_late
        self._last: Tensor | None = None
        self._late = 0

    def next(self, action: Tensor | None, state: Tensor) -> Tensor:
        """The action `(B, D)` to command: the given one, or one that holds still.

        Raises LateInferenceError after `max_late` steps without an action, ConfigError where nobody knows how this
        robot holds still, or the state at which it is to is not finite.
        """
        if action is not None:
            self._last, self._late = action, 0
            return action
        self._late += 1
        if self._max_late is not None and self._late > self._max_late:
            raise LateInferenceError(
                f"no action for {self._late} control steps in a row; at most {self._max_late} were allowed (max_late). "
                "Inference is too slow for this rate: execute more of each chunk (every), take fewer sampler steps, or "
                "a faster device."
            )
        return self.still(state) if self._last is None else self._last

    def still(self, state: Tensor) -> Tensor:
        """What is commanded before the first action, `(B, D)`."""
        action = state[..., self._dimensions].float() if self._hold is None else self._hold(state)
        if not bool(torch.isfinite(action).all()):
            raise ConfigError(
                f"the robot would be held still at {action.tolist()}, which is not finite; its state is "
                f"{state.tolist()}."
            )
        return action

    def require(self) -> None:
        """Raise ConfigError where nobody knows how this robot holds still."""
        if self._hold is None:
            self._dimensions  # noqa: B018

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with only these robots, in this order."""
        if self._last is not None:
            self._last = self._last[torch.as_tensor(list(rows), dtype=torch.int64).to(self._last.device)]

    @cached_property
    def _dimensions(self) -> list[int]:
        return still_dimensions(self._embodiment)


def still_dimensions(embodiment: Embodiment) -> list[int]:
    """Which state dimension each action dimension is a target of: the one of its name, or the one it is a delta to.

    Raises ConfigError naming those of which neither is known.
    """
    names = [name for field in embodiment.state for name in field.names]
    wanted = [name for field in embodiment.action for name in field.names]
    found: list[int] = []
    unknown: list[str] = []
    for place, (name, delta) in enumerate(zip(wanted, embodiment.delta_mask, strict=True)):
        if delta:
            found.append(place)
        elif names.count(name) == 1:
            found.append(names.index(name))
        else:
            unknown.append(name)
    if unknown:
        raise ConfigError(
            f"embodiment {embodiment.name!r}: what keeps action {', '.join(unknown)} still is not known, since no "
            f"single state dimension has that name ({', '.join(names)}); give hold=…, from state to action."
        )
    return found
