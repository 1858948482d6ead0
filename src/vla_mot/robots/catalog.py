"""The embodiments that come with the library, `conf/embodiment/*.yaml`, by name or by what datasets call them."""

from functools import cache

import yaml

from vla_mot.conf_dir import conf_dir
from vla_mot.errors import ConfigError
from vla_mot.robots.embodiment import Embodiment


@cache
def known_embodiments() -> tuple[Embodiment, ...]:
    """All of them, in the order of their names. Raises ConfigError naming a file that is none."""
    found = []
    for file in sorted((conf_dir() / "embodiment").glob("*.yaml")):
        try:
            found.append(Embodiment.from_dict(yaml.safe_load(file.read_text())))
        except (ConfigError, yaml.YAMLError) as error:
            raise ConfigError(f"{file}: {error}") from error
    return tuple(found)


def find_embodiment(name: str) -> Embodiment | None:
    """The embodiment of that name or alias, or None."""
    return next((e for e in known_embodiments() if name in (e.name, *e.aliases)), None)
