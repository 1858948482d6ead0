"""What observations of one form have in common: which tokens are real, where they stand, and who sees whom.

Slots of absent cameras and words behind the longest instruction are left out: nothing reads them. Positions are those
that the whole sequence has, so what is left out changes no number but by rounding.

Legend: `B` robots, `V` camera slots, `N` text tokens, `X` position axes, `Q`/`K` queries and keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vla_mot.batch import Observation
from vla_mot.errors import ConfigError
from vla_mot.model.model import VlaMotModel
from vla_mot.nn.masks import ACTION, GENERATION, STATE, UNDERSTANDING, TokenLayout, build_attn_mask
from vla_mot.nn.mot import Visible
from vla_mot.nn.rope import Rotation, rotation


@dataclass(frozen=True)
class Form:
    """What decides the shapes of every stage, and how its attention is computed.

    views: camera slots that are looked at. words: text tokens that are. size, dtype: (height, width) of the pictures in
    pixels, and whether they are bytes or floats. masked: per stage, whether its attention needs a mask.
    """

    rows: int
    views: tuple[int, ...]
    words: int
    size: tuple[int, int]
    dtype: torch.dtype
    masked: tuple[bool, bool, bool]


class Stage(NamedTuple):
    """Where the tokens of one stage stand (see `Rotation`), and what they see."""

    cos: Tensor
    sin: Tensor
    sees: Visible

    @property
    def turn(self) -> Rotation:
        """The rotation of its tokens."""
        return Rotation(self.cos, self.sin)


@dataclass(frozen=True)
class Plan:
    """Of one form, and of one instruction's length.

    counts: tokens of understanding, generation, state and action. layout, last: of the prefix, `(B,)`, for denoising
    outside of the engine. slots: `form.views`, on the device.
    """

    form: Form
    counts: tuple[int, int, int, int]
    understanding: Stage
    foresight: Stage
    action: Stage
    layout: TokenLayout
    last: Tensor
    slots: Tensor

    def looked_at(self, views: Tensor) -> Tensor:
        """`(B, V, …)` of all slots → of those that are looked at."""
        count = len(self.form.views)
        if self.form.views == tuple(range(count)):
            return views[:, :count]
        return views.index_select(1, self.slots)

    def spread(self, views: Tensor, slots: int) -> Tensor:
        """`(B, V, …)` of the views that are looked at → of so many slots, zero elsewhere, in memory of its own."""
        whole = views.new_zeros((views.shape[0], slots, *views.shape[2:]))
        return whole.index_copy_(1, self.slots, views)

    @property
    def prefix(self) -> int:
        """Tokens before the action's."""
        return sum(self.counts[:3])


@torch.no_grad()
def make_plan(
    model: VlaMotModel, observation: Observation, text_multiple: int, *, generation: bool = True
) -> Plan:
    """Plan for observations with these masks, by looking at this one: slow, once.

    observation: on the model's device. text_multiple, generation: see `EngineConfig`.
    Raises ConfigError when no camera is present.
    """
    views, words = _looked_at(observation, text_multiple)
    if not views:
        raise ConfigError("an engine needs a picture to look at, but the camera of every slot is absent.")
    tokens = model.prefix_tokens(observation, sampling=True)
    block = tokens.layout.block
    understood, generated, state = (int((block == i).sum()) for i in (UNDERSTANDING, GENERATION, STATE))
    slots, length = observation.view_mask.shape[1], observation.token_mask.shape[1]
    device = observation.state.device
    per_view, per_picture = (understood - length) // slots, generated // slots
    order = torch.arange(tokens.where.shape[2], device=device)
    kept = [
        *(order[view * per_view : (view + 1) * per_view] for view in views),
        order[slots * per_view : slots * per_view + words],
        *(
            order[understood + view * per_picture : understood + (view + 1) * per_picture]
            for view in (views if generation else ())
        ),
        order[understood + generated :],
    ]
    keep = torch.cat(kept)
    counts = (
        len(views) * per_view + words,
        len(views) * per_picture if generation else 0,
        state,
        model.config.chunk_size,
    )
    last = tokens.last_position
    where = torch.cat((tokens.where[:, :, keep], model.action_positions(last, 1)), dim=2)
    chunk = TokenLayout.of(ACTION, torch.ones(len(last), counts[3], dtype=torch.bool, device=device))
    prefix = _at(tokens.layout, keep)
    layout = TokenLayout.concat([prefix, chunk])
    geometry = model.understanding.geometry
    turn = rotation(where, geometry.head_dim, geometry.rope)
    u, g, s, a = counts
    stages = (
        _stage(layout, turn, 0, {"understanding": u}),
        _stage(layout, turn, u, {"generation": g, "action": s}),
        _stage(layout, turn, u + g + s, {"action": a}),
    )
    masked = [isinstance(stage.sees, Tensor) for stage in stages]
    form = Form(
        rows=observation.batch_size,
        views=views,
        words=words,
        size=(observation.images.shape[-2], observation.images.shape[-1]),
        dtype=observation.images.dtype,
        masked=(masked[0], masked[1], masked[2]),
    )
    return Plan(form, counts, *stages, prefix, last, torch.tensor(views, device=device))


def _looked_at(observation: Observation, text_multiple: int) -> tuple[tuple[int, ...], int]:
    """Slots that are present for any robot, and text tokens up to the longest instruction's last one."""
    views = observation.view_mask.any(0).nonzero().flatten().tolist()
    words = observation.token_mask.any(0).nonzero().flatten()
    longest = int(words[-1]) + 1 if len(words) else 1
    rounded = -(-longest // text_multiple) * text_multiple
    return tuple(views), min(rounded, observation.token_mask.shape[1])


def _at(layout: TokenLayout, keep: Tensor) -> TokenLayout:
    return TokenLayout(layout.block[keep], layout.group[keep], layout.causal[keep], layout.valid[:, keep])


def _stage(layout: TokenLayout, turn: Rotation, start: int, experts: Mapping[str, int]) -> Stage:
    """The stage whose tokens begin at `start`. experts: how many tokens each has in it, in block order."""
    counts = {name: count for name, count in experts.items() if count}
    end = start + sum(counts.values())
    before = _at(layout, torch.arange(end, device=layout.block.device))
    mask = build_attn_mask(before, num_queries=end - start)
    sees, whole, row = {}, torch.zeros_like(mask), 0
    for name, count in counts.items():
        sees[name] = start + row + count
        whole[:, row : row + count, : sees[name]] = True
        row += count
    own = turn[slice(start, end)]
    # Copied, since what runs compiled asks for the strides that it was compiled for.
    return Stage(own.cos.contiguous(), own.sin.contiguous(), sees if torch.equal(mask, whole) else mask)
