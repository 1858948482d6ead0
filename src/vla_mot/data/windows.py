"""Training windows over one dataset: three frames, a chunk of actions, and what of them is real.

Legend: `B` samples, `N` samples of a dataset, `E` chosen episodes, `V` present cameras in slot order, `L` chunk steps,
`S`/`D` real state and action dims.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vla_mot.batch import Batch
from vla_mot.data.frames import Frames
from vla_mot.data.latent_cache import LatentCache
from vla_mot.data.source import Source
from vla_mot.errors import ConfigError
from vla_mot.robots.processor import Processor, Tokenize

_REMEMBERED = 2**16  # instructions whose tokens are kept


@dataclass(frozen=True)
class WindowConfig:
    """What a window covers.

    chunk_size: L, actions from frame t on. offset_frames: m, the distance in frames of the history frame t - m and
    the foresight frame t + m. image_size: (height, width) in pixels of a view.
    """

    chunk_size: int
    offset_frames: int
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.chunk_size < 1 or self.offset_frames < 1:
            raise ConfigError(
                f"chunk_size and offset_frames must be at least 1, got {self.chunk_size} and {self.offset_frames}."
            )


@dataclass(frozen=True)
class Windows:
    """B windows as recorded, in physical units and before any normalization.

    images: `(B, 3, V, 3, H, W)` uint8, frames t - m, t and t + m of the present cameras; where there are latents, frame
        t in all three places, for nobody reads the others.
    latents: `(B, 3, V, C, h, w)` of the three frames, where they were encoded before.
    history_valid, future_valid: `(B,)` bool, True where t - m and t + m lie inside the episode. Before its start the
        first frame is the history that a robot starts with, and trains; past its end nothing is there to be foreseen.
    actions: `(B, L, D)` float32; step_mask: `(B, L)` bool, False where the last action of the episode is repeated.
    state: `(B, S)` float32 at t. tasks: B instructions.
    origin: `(B, 3)` int64: the dataset's place in the mixture, the episode, and the frame t in the dataset.
    """

    images: Tensor
    history_valid: Tensor
    future_valid: Tensor
    actions: Tensor
    step_mask: Tensor
    state: Tensor
    tasks: tuple[str, ...]
    origin: Tensor
    latents: Tensor | None = None

    def __len__(self) -> int:
        return self.origin.shape[0]

    def with_images(self, images: Tensor) -> "Windows":
        """The same windows with other pictures."""
        return replace(self, images=images)

    @classmethod
    def joined(cls, parts: Sequence["Windows"]) -> "Windows":
        """The windows of several datasets of one robot, in the order of the parts."""
        if len(parts) == 1:
            return parts[0]
        names = ["images", "history_valid", "future_valid", "actions", "step_mask", "state", "origin"]
        names += ["latents"] if parts[0].latents is not None else []
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(**tensors, tasks=tuple(task for part in parts for task in part.tasks))


class WindowDataset(Dataset[Windows]):
    """Map-style: sample i is the window at the i-th frame of the chosen episodes, each frame of them once.

    A window never leaves its episode: before its start the first frame stands in for the history; past its end the
    last frame stands in for the future and the last action for the chunk's steps; all three are flagged.
    `__getitems__` gathers a whole batch at once, and `__getitem__` is a batch of one.

    pictures: of every frame, from a cache or decoded on demand. latents: of every frame, where they were encoded.
    number: the dataset's place in its mixture. Of a source that was opened in part, only samples of the episodes that
    it holds can be gathered.
    """

    def __init__(
        self,
        source: Source,
        pictures: Frames,
        config: WindowConfig,
        episodes: Sequence[int] | None = None,
        number: int = 0,
        latents: LatentCache | None = None,
    ) -> None:
        expected = (source.num_frames, len(source.cameras), 3, *config.image_size)
        if pictures.shape != expected:
            raise ConfigError(f"the frame cache has shape {pictures.shape}, these windows need {expected}.")
        self.source, self.pictures, self.config, self.number = source, pictures, config, number
        self.latents = latents
        chosen = torch.as_tensor(range(source.num_episodes) if episodes is None else list(episodes)).long()
        if not len(chosen):
            raise ConfigError(f"no episode of {source.root} was chosen.")
        starts, ends = source.bounds[chosen].unbind(1)
        self._behind = (ends - starts).cumsum(0)
        shift = ends - self._behind  # from the number of a sample to its frame
        self._episodes = torch.stack([starts, ends - 1, chosen, shift], dim=1)
        self._count = int(self._behind[-1])

    def __len__(self) -> int:
        return self._count

    @property
    def frames(self) -> Tensor:
        """The frame of every sample, `(N,)` int64; made anew, as are the episodes."""
        return torch.arange(len(self)) + self._repeated(3)

    @property
    def episodes(self) -> Tensor:
        """The episode of every sample, `(N,)` int64."""
        return self._repeated(2)

    def episode(self, i: int) -> int:
        """The episode of sample i."""
        return int(self._located(torch.tensor([i]))[0, 2])

    def _repeated(self, column: int) -> Tensor:
        return torch.repeat_interleave(
            self._episodes[:, column], self._behind.diff(prepend=torch.tensor([0]))
        )

    def _located(self, rows: Tensor) -> Tensor:
        """Of samples `(B,)`: `(B, 4)` first and last frame of the episode, its number, and the way to their frames.

        Raises IndexError for a sample that there is not.
        """
        if len(rows) and int(rows.min()) < 0:
            raise IndexError(f"sample {int(rows.min())} of {self.source.root} comes before the first")
        return self._episodes.index_select(0, torch.searchsorted(self._behind, rows, right=True))

    def __getitem__(self, i: int) -> Windows:
        return self.__getitems__([range(len(self))[i]])

    def __getitems__(self, indices: Sequence[int] | Tensor) -> Windows:
        """Gather samples, in the order of `indices`."""
        rows = torch.as_tensor(indices)
        first, last, episodes, shift = self._located(rows).unbind(1)
        now = rows + shift
        m = self.config.offset_frames
        times = torch.stack([torch.maximum(now - m, first), now, torch.minimum(now + m, last)], dim=1)
        steps = now[:, None] + torch.arange(self.config.chunk_size)
        step_mask = (steps <= last[:, None]) & self.source.has_actions
        chunk = self.source.rows(torch.minimum(steps, last[:, None]))
        held = chunk[:, 0]  # of frame t
        return Windows(
            images=self._images(times),
            latents=None if self.latents is None else self.latents.gather(times),
            history_valid=now - m >= first,
            future_valid=now + m <= last,
            actions=self.source.action.index_select(0, chunk.flatten()).unflatten(0, chunk.shape),
            step_mask=step_mask,
            state=self.source.state[held],
            tasks=tuple(self.source.tasks[task] for task in self.source.task_index[held].tolist()),
            origin=torch.stack([torch.full_like(now, self.number), episodes, now], dim=1),
        )

    def _images(self, times: Tensor) -> Tensor:
        """`(B, 3)` frames → `(B, 3, V, 3, H, W)`; only the present is read where latents tell the rest."""
        if self.latents is None:
            return self.pictures.gather(times)
        return self.pictures.gather(times[:, 1:2]).expand(-1, 3, *self.pictures.shape[1:])


class Collate:
    """Windows of one robot → the model's `Batch`, through the same `Processor` that runs the robot.

    Every distinct instruction is tokenized once, as long as it is among the last ones seen.
    """

    def __init__(self, processor: Processor) -> None:
        self.slots = [slot for slot, _ in processor.embodiment.present_cameras]
        self.processor = replace(processor, tokenize=_RememberedTokens(processor.tokenize))

    def __call__(self, windows: Windows, index: Tensor | None = None) -> Batch:
        """Build the batch. index: `(B,)` global sample indices that key the noise; the frames' by default."""
        views = {slot: windows.images[:, :, view] for view, slot in enumerate(self.slots)}
        observation = self.processor.observation(
            {slot: view[:, :2] for slot, view in views.items()}, windows.state, windows.tasks
        )
        absent = torch.full_like(windows.images[:, 0, 0], 255)
        slots = range(observation.images.shape[1])
        latents = None if windows.latents is None else self._in_slots(windows.latents, len(slots))
        if latents is not None:
            observation = replace(observation, latents=latents[:, :, :2])
        batch = self.processor.batch(
            observation,
            future=torch.stack([views[slot][:, 2] if slot in views else absent for slot in slots], dim=1),
            future_mask=windows.future_valid[:, None].expand(-1, len(slots)),
            actions=windows.actions,
            step_mask=windows.step_mask,
            index=windows.origin[:, 2] if index is None else index,
            state=windows.state,
        )
        future = None if latents is None else latents[:, :, 2]
        return replace(batch, origin=windows.origin, future_latents=future)

    def _in_slots(self, latents: Tensor, slots: int) -> Tensor:
        """`(B, 3, V, C, h, w)` of the present cameras → `(B, V', 3, C, h, w)` of all slots, zero where absent."""
        found = latents.new_zeros(latents.shape[0], slots, 3, *latents.shape[3:])
        found[:, self.slots] = latents.transpose(1, 2)
        return found


class _RememberedTokens:
    """A `Tokenize` that asks another one, which gives every text the same width, once per text."""

    def __init__(self, tokenize: Tokenize) -> None:
        self._row = lru_cache(maxsize=_REMEMBERED)(lambda text: tokenize([text]))

    def __call__(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, mask = zip(*map(self._row, instructions), strict=True)
        return torch.cat(ids), torch.cat(mask)
