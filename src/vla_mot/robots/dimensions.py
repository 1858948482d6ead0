"""What each dimension of a robot's action is: its name, its unit, the state that it commands, joint or gripper."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from vla_mot.robots.embodiment import Embodiment, Field
from vla_mot.robots.generic import is_gripper


@dataclass(frozen=True)
class ActionDimension:
    """One dimension of an action.

    name: its own, behind its feature's key where several dimensions have it. unit: physical. delta: predicted relative
    to the state. gripper: opens and closes a hand. state: the dimension of the state that stands for it (the one that
    it is a delta of, or that has its name in the same place), None where there is none.
    """

    name: str
    unit: str
    delta: bool
    gripper: bool
    state: int | None


def action_dimensions(embodiment: Embodiment) -> tuple[ActionDimension, ...]:
    """Every action dimension of a robot, in order.

    A gripper is what its name or its feature's says. A robot that names none has, by the released policies' convention,
    those for grippers that stay absolute beside deltas.
    """
    often = Counter(name for field in embodiment.action for name in field.names)
    states = [name for field in embodiment.state for name in field.names]
    named = any(is_gripper(field.key, name) for field, name, _, _ in _each(embodiment))
    relative = any(embodiment.delta_mask)
    found = []
    for place, (field, name, unit, delta) in enumerate(_each(embodiment)):
        stands = place < len(states) and (delta or states[place] == name)
        found.append(
            ActionDimension(
                name=name if often[name] == 1 else f"{field.key}.{name}",
                unit=unit,
                delta=delta,
                gripper=is_gripper(field.key, name) if named else relative and not delta,
                state=place if stands else None,
            )
        )
    return tuple(found)


def _each(embodiment: Embodiment) -> Iterator[tuple[Field, str, str, bool]]:
    for field in embodiment.action:
        for name, unit, delta in zip(field.names, field.units, field.delta, strict=True):
            yield field, name, unit, delta
