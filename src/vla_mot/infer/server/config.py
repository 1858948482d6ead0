"""How a server is set up; every limit has a number."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_mot.infer.rtc import RtcConfig
from vla_mot.options import at_least, fit, within

MissingHistory = Literal["present", "error"]
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class ServerConfig:
    """See conf/serve.yaml, where each key is explained.

    batch_window_ms, deadline_ms: milliseconds. drain_seconds, ping_seconds, stuck_seconds: seconds.
    history_tolerance: control steps. failing_after: batches.
    rename: key of a client → key of the robot. instructions: what is predicted once for before listening.
    rtc: how a chunk goes on with the last one, for requests that ask for it.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    insecure: bool = False
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    seed: int = 0
    missing_history: MissingHistory = "present"
    history_tolerance: int = 0
    remember_latents: bool = False
    rename: Mapping[str, str] = field(default_factory=dict)
    max_batch: int = 8
    batch_window_ms: float = 2.0
    max_waiting: int = 16
    max_sessions: int = 32
    max_message_mib: int = 64
    max_history_mib: int = 64
    deadline_ms: float | None = None
    drain_seconds: float = 30.0
    ping_seconds: float = 20.0
    failing_after: int = 3
    stuck_seconds: float = 120.0
    warm_up: bool = True
    instructions: tuple[str, ...] = ()
    rtc: RtcConfig = field(default_factory=RtcConfig)

    def __post_init__(self) -> None:
        fit(MissingHistory, "missing_history", self.missing_history)
        within(0, 65535, {"port": self.port})
        within(0, MAX_SEED, {"seed": self.seed})
        at_least(0, {"batch_window_ms": self.batch_window_ms, "history_tolerance": self.history_tolerance})
        at_least(0, {"drain_seconds": self.drain_seconds})
        at_least(0.01, {"ping_seconds": self.ping_seconds, "stuck_seconds": self.stuck_seconds})
        counts = ("max_batch", "max_waiting", "max_sessions", "failing_after")
        at_least(1, {name: getattr(self, name) for name in counts})
        within(1, 1024, {name: getattr(self, name) for name in ("max_message_mib", "max_history_mib")})
        for name in self.rename.values():
            fit(str, "rename", name)
        if self.deadline_ms is not None:
            at_least(0.001, {"deadline_ms": self.deadline_ms})

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """1, 2, 4, … max_batch: an engine has programs for each size, so batches are filled up to one of these."""
        powers = [2**power for power in range(self.max_batch.bit_length())]
        return tuple(dict.fromkeys([*powers, self.max_batch]))

    @property
    def message_bytes(self) -> int:
        """Largest message that is read."""
        return self.max_message_mib * 2**20

    @property
    def history_bytes(self) -> int:
        """Pictures that are kept of one session."""
        return self.max_history_mib * 2**20
