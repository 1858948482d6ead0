from pathlib import Path

import pytest

import vla_mot.backbones
from vla_mot.backbones import build_backbone
from vla_mot.errors import ConfigError


def test_a_new_family_is_found_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brandnew_vl.py").write_text("def build(options):\n    return sorted(options.items())\n")
    monkeypatch.setattr(vla_mot.backbones, "__path__", [*vla_mot.backbones.__path__, str(tmp_path)])
    assert build_backbone({"type": "brandnew_vl", "width": 3}) == [("width", 3)]


@pytest.mark.parametrize("name", ["qwen3vl", "Qwen3_VL", "qwen_vl"])
def test_an_unknown_family_suggests_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown backbone type '{name}'.*Did you mean 'qwen3_vl'"):
        build_backbone({"type": name})


@pytest.mark.parametrize("config", [{}, {"type": "base"}, {"type": "tokenizers"}])
def test_what_is_no_family_is_refused(config: dict) -> None:
    with pytest.raises(ConfigError, match=r"Known: .*qwen3_vl"):
        build_backbone(config)


def test_misspelt_options_suggest_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'backbone\.hiden_size'.*'backbone\.hidden_size'"):
        build_backbone({"type": "qwen3_vl", "hiden_size": 32})
    with pytest.raises(ConfigError, match=r"unknown key 'backbone\.vision\.patchsize'.*patch_size'"):
        build_backbone({"type": "qwen3_vl", "vision": {"patchsize": 8}})


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiples of patch × merge = 32 pixels"):
        build_backbone({"type": "qwen3_vl", "image_size": [224, 240]})
    with pytest.raises(ConfigError, match=r"must sum to head_dim / 2 = 8"):
        build_backbone({"type": "qwen3_vl", "head_dim": 16})
