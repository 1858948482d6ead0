"""What a rank holds of the others' shards while layers compute (FSDP2), told to `LiveBytes` as a rehearsal goes.

A part of the model is whole from its forward pass until it ends, beside the buffer that it arrived in, and again in the
backward pass until the last of its gradients is there, beside the part that arrives for the next turn. These gradients
are whole until then, and once more on their way to the ranks that keep them, until the next part's are. What belongs to
no part is whole all the while.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from vla_mot.model.model import VlaMotModel
from vla_mot.train.live_bytes import LiveBytes
from vla_mot.train.parallel import sharded_parts

GRADIENTS, GATHERED = "gradients", "gathered"
_FORWARD, _BACKWARD = 2, 3  # times its bytes: a part and its buffer; these and what is fetched ahead


class Gathering:
    """Of one pass of a model whose weights are divided among `shards` ranks."""

    def __init__(self, model: VlaMotModel, live: LiveBytes, shards: int) -> None:
        self.live, self.shards = live, shards
        self._part_of: dict[Tensor, _Part] = {}
        self._on_their_way = 0
        for module in sharded_parts(model):
            part = _Part(module.parameters())
            self._part_of |= dict.fromkeys(part.weights, part)
            module.register_forward_pre_hook(self._adds(_FORWARD * part.bytes))
            module.register_forward_hook(self._adds(-_FORWARD * part.bytes))
        alone = set(self._part_of) | model.tokenizer_parameters()
        live.add(sum(w.nbytes for w in model.parameters() if w not in alone), GATHERED)

    def _adds(self, size: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.live.add(size, GATHERED)

        return hook

    def settle(self, weight: Tensor) -> None:
        """A weight got its gradient."""
        assert weight.grad is not None
        part = self._part_of.get(weight)
        self.live.settle(weight.grad, GRADIENTS)
        if part is None:
            return
        if not part.waiting:
            part.waiting = {w for w in part.weights if w.requires_grad}
            self.live.add(_BACKWARD * part.bytes, GATHERED)
        part.waiting.remove(weight)
        if not part.waiting:
            self._send(part)

    def _send(self, part: "_Part") -> None:
        gradients = [w.grad for w in part.weights if w.grad is not None]
        self.live.add(-self._on_their_way, GATHERED)
        self._on_their_way = sum(gradient.nbytes for gradient in gradients)
        self.live.add(self._on_their_way, GATHERED)
        self.live.add(-_BACKWARD * part.bytes, GATHERED)
        for gradient in gradients:
            self.live.settle(gradient, GRADIENTS, self.shards)


class _Part:
    """Weights that are gathered together, and those of them that have no gradient yet."""

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.weights = list(weights)
        self.bytes = sum(w.nbytes for w in self.weights)
        self.waiting: set[Tensor] = set()
