"""A stage recorded as a CUDA graph: the host launches it once per call, whatever it consists of."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_WARM_UPS = 3


class Recorded:
    """`run(*inputs, fixed)` on tensors of fixed shapes. The first call runs it a few times and records it.

    stream: what it is recorded on. What is replayed at the same time must not share it.
    What it returns is the same memory at every call: it is to be read before the next one.
    """

    def __init__(self, run: Callable[..., Any], stream: torch.cuda.Stream) -> None:
        self._run, self._stream = run, stream
        self._graph: torch.cuda.CUDAGraph | None = None
        self._places: list[Tensor] = []
        self._fixed: Any = None
        self._fixed_places: list[Tensor] = []
        self._result: Any = None

    def __call__(self, *inputs: Any, fixed: Any) -> Any:
        """Copy the tensors to where the recording reads them, and replay it.

        fixed: tables that are copied only when they are not those of the last call.
        """
        if self._graph is None:
            self._record(inputs, fixed)
        if fixed is not self._fixed:
            _copy(self._fixed_places, fixed)
            self._fixed = fixed
        _copy(self._places, inputs)
        assert self._graph is not None
        self._graph.replay()
        return self._result

    def _record(self, inputs: Any, fixed: Any) -> None:
        self._places, self._fixed_places = [], []
        placed, placed_fixed = _placed(inputs, self._places), _placed(fixed, self._fixed_places)
        self._fixed = fixed
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                self._run(*placed, fixed=placed_fixed)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._result = self._run(*placed, fixed=placed_fixed)
        self._graph = graph


def _placed(tree: Any, places: list[Tensor]) -> Any:
    """The same tuples and mappings with copies of their tensors, which are added to `places` in order."""
    if isinstance(tree, Tensor):
        places.append(tree.clone())
        return places[-1]
    if isinstance(tree, Mapping):
        return {key: _placed(value, places) for key, value in tree.items()}
    if isinstance(tree, tuple):
        parts = [_placed(value, places) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


def _copy(places: list[Tensor], tree: Any) -> None:
    given: list[Tensor] = []
    _gather(tree, given)
    for place, value in zip(places, given, strict=True):
        assert (place.shape, place.dtype) == (value.shape, value.dtype), "recorded for another form"
        place.copy_(value, non_blocking=True)


def _gather(tree: Any, found: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        found.append(tree)
    for value in tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, tuple) else ():
        _gather(value, found)
