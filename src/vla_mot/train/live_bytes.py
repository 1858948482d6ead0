"""How many bytes of tensors are alive, and how many were at most.

A dispatch mode sees the result of every operation of torch, backward passes included; a storage counts from then until
its last tensor is gone. What a kernel allocates for itself and gives back before it returns is not seen.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make while it is active, under the kind `made`.

    block: an allocator hands out multiples of so many bytes.
    bytes: of what is alive now, by kind. peak: the same, when their sum was
    largest. most: the most of each kind, whenever that was.
    Autograd must stay in this thread: `torch.autograd.set_multithreading_enabled(False)`.
    """

    def __init__(self, made: str, block: int = 1) -> None:
        super().__init__()
        self.made, self.block = made, block
        self.bytes: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._held: dict[
            int, tuple[str, int]
        ] = {}  # kind and bytes, by the identity of a storage's Python object

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count(tree_leaves(result), self.made)
        return result

    def count(self, tensors: Iterable[Any], kind: str) -> None:
        """Count the storages of tensors under a kind, unless they are counted already."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._held:
                    self._hold(storage, kind, self._size(storage))
                    weakref.finalize(storage, self._forget, id(storage)).atexit = False
        self._compare()

    def settle(self, tensor: Tensor, kind: str, parts: int = 1) -> None:
        """Let the storage of a tensor count under a kind from now on, one of `parts` of its bytes."""
        self.count([tensor], kind)
        storage = tensor.untyped_storage()
        before, size = self._held[id(storage)]
        self.bytes[before] -= size
        self._hold(storage, kind, -(-self._size(storage) // parts))
        self._compare()

    def add(self, size: int, kind: str) -> None:
        """Count bytes that no operation makes; negative ones are given back."""
        self.bytes[kind] += size
        self._compare()

    def _hold(self, storage: torch.UntypedStorage, kind: str, size: int) -> None:
        self._held[id(storage)] = kind, size
        self.bytes[kind] += size

    def _forget(self, storage: int) -> None:
        kind, size = self._held.pop(storage)
        self.bytes[kind] -= size

    def _compare(self) -> None:
        if self.bytes.total() > self.peak.total():
            self.peak = Counter(self.bytes)
        self.most |= self.bytes

    def _size(self, storage: torch.UntypedStorage) -> int:
        return -(-storage.nbytes() // self.block) * self.block
