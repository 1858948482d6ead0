"""Where the Hydra configuration lies: inside an installed wheel, or in the checkout beside `src/`."""

from pathlib import Path

from vla_mot.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """Return the folder of the Hydra groups, absolute.

    A wheel carries it as `vla_mot/conf`. An editable install does not see that copy (hatch's `force-include`
    applies to wheels alone), so there the repository's own `conf/` is used.

    Raises:
        ConfigError: neither exists, because the installation is incomplete.
    """
    packaged = _PACKAGE / "conf"
    checkout = _PACKAGE.parents[1] / "conf"
    if packaged.is_dir():
        return packaged
    if checkout.is_dir() and _PACKAGE.parent.name == "src":
        return checkout
    raise ConfigError(
        f"expected the configuration in {packaged} (installed) or {checkout} (checkout), but neither exists. "
        "Reinstall vla-mot, or run `make setup` in a complete checkout."
    )
