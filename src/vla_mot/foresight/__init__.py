"""Frozen foresight tokenizers, one per file: frames in, latents out, and back to pictures.

A file defines `build(options) -> ForesightTokenizer` (see `base`); `build_tokenizer` finds it by name.
"""

from vla_mot.foresight.base import ForesightTokenizer, build_tokenizer

__all__ = ["ForesightTokenizer", "build_tokenizer"]
