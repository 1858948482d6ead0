"""What scoring foresight found: numbers with intervals and a few pictures, saved as JSON and NPZ and loaded again."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_mot.evaluate.intervals import Interval
from vla_mot.hub.files import write_json

METHOD_LABELS = {
    "foresight": "foreseen",
    "no_history": "foreseen, history replaced",
    "copy_last": "copy of the last frame",
    "training_mean": "mean of the training data",
}
METHODS = tuple(METHOD_LABELS)
REGIONS = ("moving", "whole")
SCORES_FILE, PICTURES_FILE = "foresight.json", "foresight.npz"
_PICTURES = ("past", "present", "future", "foreseen", "no_history")


@dataclass(frozen=True)
class ForesightScore:
    """One method in one view and region.

    mse: mean squared latent error. ratio: this method's error over the foresight's, paired (above 1: foresight is
    better). psnr: of the decoded pictures in dB against the true ones (region `whole` only, else None).
    All with 95 % intervals from a bootstrap over episodes; without ends where something moves in one episode only.
    """

    view: str
    region: str
    method: str
    mse: Interval
    ratio: Interval
    psnr: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        numbers = {"mse": self.mse, "ratio": self.ratio, "psnr": self.psnr}
        names = {"view": self.view, "region": self.region, "method": self.method}
        return names | {name: value and value.to_dict() for name, value in numbers.items()}

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> "ForesightScore":
        """The inverse of `to_dict`."""
        numbers = {name: spec[name] and Interval.from_dict(spec[name]) for name in ("mse", "ratio", "psnr")}
        return cls(spec["view"], spec["region"], spec["method"], **numbers)


@dataclass(frozen=True)
class ForesightExample:
    """One sample of one view, `(H, W, 3)` uint8 each: frames t − m, t and t + m, and what was foreseen for t + m,
    with the history and with the history replaced. Copying the last frame is `present` itself."""

    view: str
    episode: int
    past: np.ndarray
    present: np.ndarray
    future: np.ndarray
    foreseen: np.ndarray
    no_history: np.ndarray


@dataclass(frozen=True)
class ForesightReport:
    """Scores for every (view, region, method), with the number of samples in which something moves and of their
    episodes, the offset m in frames, the threshold of movement, and example pictures.

    trained_on: whether training may have seen these episodes, for none is known to be held out.
    """

    scores: tuple[ForesightScore, ...]
    samples: int
    episodes: int
    offset_frames: int
    threshold: float
    examples: tuple[ForesightExample, ...] = ()
    trained_on: bool = False

    @property
    def views(self) -> tuple[str, ...]:
        """The views, in the order of the camera slots."""
        return tuple(dict.fromkeys(score.view for score in self.scores))

    def score(self, view: str, region: str, method: str) -> ForesightScore:
        """The score of one method. Raises KeyError when there is none."""
        for score in self.scores:
            if (score.view, score.region, score.method) == (view, region, method):
                return score
        raise KeyError(f"no score for {view!r}, {region!r}, {method!r}")

    def save(self, folder: Path) -> None:
        """Write `foresight.npz`, which has the pictures, and then `foresight.json`: where that is, both are whole."""
        content = {
            "offset_frames": self.offset_frames,
            "threshold": self.threshold,
            "samples": self.samples,
            "episodes": self.episodes,
            "trained_on": self.trained_on,
            "scores": [score.to_dict() for score in self.scores],
            "examples": [{"view": example.view, "episode": example.episode} for example in self.examples],
        }
        pictures = {
            f"{number}/{name}": getattr(example, name)
            for number, example in enumerate(self.examples)
            for name in _PICTURES
        }
        np.savez_compressed(folder / PICTURES_FILE, **pictures)
        unfinished = folder / f".{SCORES_FILE}.unfinished"
        write_json(unfinished, content)
        os.replace(unfinished, folder / SCORES_FILE)

    @classmethod
    def load(cls, folder: Path) -> "ForesightReport | None":
        """Read what `save` wrote; None when there is nothing."""
        if not (folder / SCORES_FILE).is_file():
            return None
        content = json.loads((folder / SCORES_FILE).read_text())
        with np.load(folder / PICTURES_FILE) as pictures:
            examples = tuple(
                ForesightExample(**head, **{name: pictures[f"{number}/{name}"] for name in _PICTURES})
                for number, head in enumerate(content.pop("examples"))
            )
        scores = tuple(ForesightScore.from_dict(score) for score in content.pop("scores"))
        return cls(scores=scores, examples=examples, **content)
