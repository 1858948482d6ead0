"""The strategies by name: what a session, a runner and an evaluation are told."""

from dataclasses import dataclass, field
from typing import Literal

from vla_mot.infer.chunks import Chunks
from vla_mot.infer.ensemble import EnsembledChunks
from vla_mot.infer.rtc import RealTimeChunks, RtcConfig
from vla_mot.options import at_least, fit

Method = Literal["naive", "ensemble", "rtc"]


@dataclass(frozen=True)
class Chunking:
    """What is done with chunks in time.

    method: `naive` executes the newest chunk; `ensemble` averages all that speak of a step (`infer.ensemble`); `rtc`
        makes each chunk go on where the last one is (`infer.rtc`).
    every: control steps between two questions. None: `n_action_steps` of the sampler; 1 for `ensemble`.
    ensemble_decay: m of the weights exp(−m·i), the oldest chunk first; ACT's 0.01.
    rtc: of that method.
    """

    method: Method = "naive"
    every: int | None = None
    ensemble_decay: float = 0.01
    rtc: RtcConfig = field(default_factory=RtcConfig)

    def __post_init__(self) -> None:
        fit(Method, "chunks", self.method)
        at_least(0, {"ensemble_decay": self.ensemble_decay})
        if self.every is not None:
            at_least(1, {"every": self.every})

    @property
    def label(self) -> str:
        """For people."""
        if self.method == "rtc":
            return f"real-time chunking ({self.rtc.mode})"
        return {"naive": "newest chunk", "ensemble": "temporal ensembling"}[self.method]

    def start(self, n_action_steps: int) -> Chunks:
        """Fresh ones, for an episode. n_action_steps: the sampler's."""
        if self.method == "ensemble":
            return EnsembledChunks(self.every or 1, self.ensemble_decay)
        every = self.every or n_action_steps
        return RealTimeChunks(every, self.rtc) if self.method == "rtc" else Chunks(every)


NAIVE = Chunking()
