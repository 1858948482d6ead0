"""Who may connect: addresses, tokens, certificates."""

import hmac
import ipaddress
import logging
import os
import ssl
from pathlib import Path

from vla_mot.errors import ConfigError
from vla_mot.infer.server.config import ServerConfig

_log = logging.getLogger(__name__)
TOKEN_VARIABLE = "VLA_MOT_TOKEN"
_SHORTEST = 16  # characters of a token
_SCHEMES = ("bearer", "api-key")


def read_token(config: ServerConfig) -> str | None:
    """The token from `token_file`, else from the environment variable VLA_MOT_TOKEN; None without either.

    Never on the command line, where every user of the machine could read it. Raises ConfigError for one that is
    missing, short, or has white space in it.
    """
    if config.token_file is not None:
        token, source = _content(config.token_file), f"token_file={config.token_file}"
    elif TOKEN_VARIABLE in os.environ:
        token, source = os.environ[TOKEN_VARIABLE], f"the environment variable {TOKEN_VARIABLE}"
    else:
        return None
    token = token.strip()
    if len(token) < _SHORTEST or not token.isascii() or len(token.split()) != 1:
        raise ConfigError(
            f"{source}: a token is one word of at least {_SHORTEST} ASCII characters; make one with: "
            'python -c "import secrets; print(secrets.token_urlsafe(32))".'
        )
    return token


def _content(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file={file} cannot be read: {error}.") from error


def may_enter(authorization: str | None, token: str | None) -> bool:
    """Whether `Authorization: Bearer …` (openpi: `Api-Key …`) holds the token; anybody may where there is none."""
    if token is None:
        return True
    scheme, _, given = (authorization or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), token.encode())
    return same and scheme.lower() in _SCHEMES


def require_safe(config: ServerConfig, token: str | None) -> None:
    """Raise ConfigError where anybody on the network could drive the robot, unless `insecure=true` says so."""
    if is_loopback(config.host) or config.insecure:
        return
    if token is None:
        raise ConfigError(
            f"host={config.host} is reached from other machines, and there is no token: whoever reaches it drives the "
            f"robot. Give token_file=… (or {TOKEN_VARIABLE}), or keep host=127.0.0.1, or say insecure=true."
        )
    if config.tls_cert is None:
        _log.warning(
            "without tls_cert=… and tls_key=… the token and the pictures cross the network unencrypted"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """What `tls_cert` and `tls_key` name. Raises ConfigError for one without the other, or files that do not fit."""
    if config.tls_cert is None and config.tls_key is None:
        return None
    if config.tls_cert is None or config.tls_key is None:
        raise ConfigError("TLS needs both tls_cert=… and tls_key=… (PEM files).")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"tls_cert={config.tls_cert}, tls_key={config.tls_key}: {error}.") from error
    return context
