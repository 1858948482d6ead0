"""What each dimension of a robot's action is: its name, its unit, the state that it commands, joint or gripper."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from vla_mot.robots.actions import DELTA
from vla_mot.robots.embodiment import Embodiment, Field
from vla_mot.robots.generic import is_gripper


@dataclass(frozen=True)
class ActionDimension:
    """One dimension of an action.

    name: its own, behind its feature's key where several dimensions have it. unit: physical. delta: predicted relative
    to the state. gripper: opens and closes a hand. state: the dimension of the state in the same place where that is
    what it commands (it has its unit, and the action is learned as a delta of it or has its name), None elsewhere.
    """

    name: str
    unit: str
    delta: bool
    gripper: bool
    state: int | None


def action_dimensions(embodiment: Embodiment, action_mode: str = DELTA) -> tuple[ActionDimension, ...]:
    """Every action dimension of a robot, in order, as it is learned in an action mode.

    A gripper is what its name or its feature's says. A robot that names none has, by the released policies' convention,
    those for grippers that stay absolute beside deltas.
    """
    often = Counter(name for field in embodiment.action for name in field.names)
    states = [pair for field in embodiment.state for pair in zip(field.names, field.units, strict=True)]
    named = any(is_gripper(field.key, name) for field, name, _, _ in _each(embodiment))
    relative = any(embodiment.delta_mask)
    found = []
    for place, (field, name, unit, delta) in enumerate(_each(embodiment)):
        learned = delta and action_mode == DELTA
        called, measured = states[place] if place < len(states) else (None, None)
        found.append(
            ActionDimension(
                name=name if often[name] == 1 else f"{field.key}.{name}",
                unit=unit,
                delta=learned,
                gripper=is_gripper(field.key, name) if named else relative and not delta,
                state=place if measured == unit and (learned or called == name) else None,
            )
        )
    return tuple(found)


def _each(embodiment: Embodiment) -> Iterator[tuple[Field, str, str, bool]]:
    for field in embodiment.action:
        for name, unit, delta in zip(field.names, field.units, field.delta, strict=True):
            yield field, name, unit, delta
