"""Which episodes train and which validate."""

import hashlib

from vla_mot.errors import ConfigError


def split_episodes(
    num_episodes: int, fraction: float, seed: int = 0
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split whole episodes into (training, validation), so that no window of one is seen in the other.

    fraction: share of episodes for validation, in [0, 1); at least one episode if above 0. The order of the hash
    of (seed, episode) decides, so the same numbers give the same split on every machine and library version.
    Raises ConfigError when the fraction is outside its range or leaves no episode to train on.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"the validation fraction must lie in [0, 1), got {fraction}.")
    count = max(1, round(num_episodes * fraction)) if fraction > 0 else 0
    if count >= num_episodes:
        raise ConfigError(
            f"{num_episodes} episodes cannot be split with a validation fraction of {fraction}: none is left to "
            "train on. Record more episodes, or lower the fraction."
        )
    if not count:
        return tuple(range(num_episodes)), ()
    shuffled = sorted(range(num_episodes), key=lambda episode: _rank(seed, episode))
    return tuple(sorted(shuffled[count:])), tuple(sorted(shuffled[:count]))


def _rank(seed: int, episode: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{episode}".encode(), digest_size=8).digest()
