"""How an engine runs."""

from dataclasses import dataclass
from typing import Literal

from vla_mot.options import at_least, fit

Kind = Literal["static", "compiled"]
Quantize = Literal["none", "int8", "fp8"]


@dataclass(frozen=True)
class EngineConfig:
    """kind: `static` runs the stages as they are, `compiled` by `torch.compile`. On CUDA both are recorded as graphs.

    graphs: record CUDA graphs (on CUDA alone).
    text_multiple: the instruction is cut behind its last word, rounded up to so many tokens. Each length has programs
        of its own, so a larger number means fewer of them, and more padding.
    foresight: predict the future latents too, for pictures; without, `ActionChunk.foresight` is None. Actions are the
        same.
    generation: let the generation expert run at all. Without it the model neither sees history nor foresees: other
        actions.
    quantize: weights of the action expert in 8 bits, where torchao is installed: other actions, see `quantize`.
    understanding_every: look with the understanding expert at every so many-th call only; in between actions are
        chosen from fresh frames of the generation expert and what was understood then: other actions.
    understanding_ahead: let sessions renew it after a call was answered, from that call's frames and beside the robot's
        loop where there is one, so that no call but an episode's first waits for it. It is then between 1 and
        `understanding_every` calls old.
    """

    kind: Kind = "compiled"
    graphs: bool = True
    text_multiple: int = 8
    foresight: bool = True
    generation: bool = True
    quantize: Quantize = "none"
    understanding_every: int = 1
    understanding_ahead: bool = False

    def __post_init__(self) -> None:
        fit(Kind, "engine.kind", self.kind)
        fit(Quantize, "engine.quantize", self.quantize)
        at_least(
            1,
            {
                "engine.text_multiple": self.text_multiple,
                "engine.understanding_every": self.understanding_every,
            },
        )
