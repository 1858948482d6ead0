"""The configuration as the commands compose it."""

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vla_mot.conf_dir import conf_dir


def composed(name: str, *overrides: str) -> dict:
    """`conf/<name>.yaml` with its defaults, as plain values."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        plain = OmegaConf.to_container(compose(name, list(overrides)), resolve=name == "demo")
    assert isinstance(plain, dict)
    return plain
