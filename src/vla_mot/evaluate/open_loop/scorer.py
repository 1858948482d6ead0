"""Scores a policy on one dataset, moment by moment."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_mot.evaluate.open_loop.errors import ErrorSums
from vla_mot.evaluate.open_loop.pictures import PictureSums, shown_pictures
from vla_mot.evaluate.open_loop.recorded import Predicted, Recorded, hold_still, predict
from vla_mot.evaluate.open_loop.results import DatasetResult
from vla_mot.evaluate.open_loop.traces import TraceBuilder
from vla_mot.evaluate.picture_scores import WINDOW
from vla_mot.infer.policy import Policy
from vla_mot.robots.images import to_unit


@dataclass(frozen=True)
class Subject:
    """What is scored: a policy that drives (or only foresees) the robot of a dataset.

    dataset: its name. fps: frames per second. offset_frames: m. stride: frames between two moments.
    episodes: those that are scored. draw: which noise chunks start from. pictures: score what is foreseen.
    """

    policy: Policy
    dataset: str
    fps: float
    offset_frames: int
    stride: int
    episodes: tuple[int, ...]
    draw: int = 0
    pictures: bool = True


class DatasetScorer:
    """Takes in the moments of one dataset. drawn: episode → its recorded actions `(T, D)`, of those that are drawn."""

    def __init__(self, subject: Subject, drawn: Mapping[int, Tensor]) -> None:
        self.subject = subject
        self.policy, self.robot = subject.policy, subject.policy.robot
        self.acts = self.robot.embodiment.action_dim > 0
        self.errors, self.pictures = ErrorSums(self.robot), PictureSums(self.robot.embodiment)
        self._traces = {episode: TraceBuilder(episode, actions.numpy()) for episode, actions in drawn.items()}
        self._notes: dict[str, None] = {}
        self._moments = 0

    @torch.no_grad()
    def add(self, seen: Recorded) -> None:
        """Predict at the moments of a batch, and compare."""
        predicted = predict(self.policy, seen, self.subject.draw)
        self._moments += len(seen.episode)
        chunks = {}
        if self.acts:
            chunks = {"policy": predicted.actions, "hold": hold_still(self.robot, seen)}
            self.errors.add(seen.actions, seen.step_mask, chunks, seen.episode)
        shown = self._foreseen(seen, predicted)
        for row, episode in enumerate(seen.episode.tolist()):
            if episode in self._traces:
                self._traces[episode].add(row, seen, chunks)
                self._traces[episode].look(row, seen, shown, self.pictures.cameras)

    def _foreseen(self, seen: Recorded, predicted: Predicted) -> dict[str, Tensor]:
        """The pictures of a batch, scored where there is a foresight."""
        model, foresight = self.policy.model, predicted.foresight
        if not self.subject.pictures:
            self._notes["foresight is not scored: it was not asked for"] = None
        elif foresight is None or model.tokenizer is None:
            self._notes["foresight is not scored: this policy, or its engine, foresees nothing"] = None
        elif min(model.tokenizer.image_size) < WINDOW:
            self._notes[f"foresight is not scored: its pictures are smaller than {WINDOW} pixels"] = None
        else:
            shown = shown_pictures(model, self.robot.embodiment, seen, foresight)
            self.pictures.add(shown, seen.future_valid, seen.episode)
            return shown
        keys = [key for _, key in self.robot.embodiment.present_cameras]
        frames = torch.stack([seen.images[key] for key in keys], dim=1)
        future = torch.stack([seen.future[key] for key in keys], dim=1)
        return {
            "past": to_unit(frames[:, :, 0]),
            "copy_last": to_unit(frames[:, :, 1]),
            "truth": to_unit(future),
        }

    def result(self) -> DatasetResult:
        """What was found."""
        subject, pictures = self.subject, self.pictures.scores()
        if pictures is None and not self._notes:
            m = subject.offset_frames
            self._notes[f"foresight is not scored: no moment has a frame {m} frames later in its episode"] = (
                None
            )
        if not self.acts:
            self._notes[
                "no actions are recorded, or the robot is none that acts: its foresight alone is scored"
            ] = None
        return DatasetResult(
            dataset=subject.dataset,
            embodiment=self.robot.embodiment.name,
            fps=subject.fps,
            offset_frames=subject.offset_frames,
            chunk_size=self.policy.spec.model.chunk_size,
            stride=subject.stride,
            episodes=subject.episodes,
            moments=self._moments,
            errors=self.errors.errors() if self.acts and self._moments else None,
            pictures=pictures,
            traces=tuple(builder.trace() for builder in self._traces.values()),
            notes=tuple(self._notes),
        )
