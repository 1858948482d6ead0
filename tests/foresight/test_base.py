from pathlib import Path

import pytest

import vla_mot.foresight
from vla_mot.errors import ConfigError
from vla_mot.foresight import build_tokenizer


def test_a_new_tokenizer_is_found_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brandnew_vae.py").write_text("def build(options):\n    return sorted(options.items())\n")
    monkeypatch.setattr(vla_mot.foresight, "__path__", [*vla_mot.foresight.__path__, str(tmp_path)])
    assert build_tokenizer({"type": "brandnew_vae", "block": 3}) == [("block", 3)]


@pytest.mark.parametrize("config", [{"type": "dtc"}, {"type": "DCT"}])
def test_an_unknown_tokenizer_names_the_known_ones(config: dict) -> None:
    with pytest.raises(ConfigError, match=rf"unknown foresight tokenizer '{config['type']}'.*dct"):
        build_tokenizer(config)


def test_the_nearest_tokenizer_is_suggested_and_the_base_is_none() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'dct'"):
        build_tokenizer({"type": "dtc"})
    with pytest.raises(ConfigError, match="unknown foresight tokenizer 'base'"):
        build_tokenizer({"type": "base"})
