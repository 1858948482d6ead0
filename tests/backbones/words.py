"""A tokenizer of a few words in Hugging Face's layout."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("<s>", "</s>", "<unk>", "pick", "the", "block")


def word_tokenizer(home: Path, words: tuple[str, ...] = WORDS) -> Path:
    """Write one that would frame a text with <s> and </s> if asked to; returns its folder."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    home.mkdir()
    tokenizer.save(str(home / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (home / "tokenizer_config.json").write_text(json.dumps(settings))
    return home
