"""From the bytes of a request to the bytes of its reply: everything but the socket.

service = Service({"conveyor": policy}, ServerConfig())   # inside a running event loop
session = service.open()
reply = await service.answer(session, message)            # bytes, or the text of an error
"""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

from vla_mot.errors import ConfigError, unknown_name
from vla_mot.infer.policy import Policy
from vla_mot.infer.server.batching import Answer, Batcher
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.errors import KINDS, RequestError, invalid
from vla_mot.infer.server.metadata import metadata
from vla_mot.infer.server.metrics import Metrics
from vla_mot.infer.server.observation import Controls, Seen, dotted, flatten, read_seen, take_controls
from vla_mot.infer.server.predicting import Known, Predictor, Row
from vla_mot.infer.server.sessions import ClientSession, History, Source
from vla_mot.infer.server.wire import decode, encode

_log = logging.getLogger(__name__)
_OK, _LEFT = "ok", "left"  # what came of a request, beside the kinds of errors


@dataclass(frozen=True)
class Work:
    """A request that only the policy can answer now. deadline_ms: after its arrival."""

    row: Row
    history: History
    step: int | None
    deadline_ms: float | None


class Service:
    """One server's policies, queue and counts. policies: name of a robot → the policy that drives it.

    Raises ConfigError without any policy, and where latents are to be remembered that none reads.
    """

    def __init__(self, policies: Mapping[str, Policy], config: ServerConfig) -> None:
        if not policies:
            raise ConfigError("there is no robot to serve: the checkpoint holds no statistics of any.")
        if config.remember_latents and not all(policy.history_steps for policy in policies.values()):
            raise ConfigError(
                "remember_latents=true keeps latents of frames that will be history, but the policy reads no history: "
                "leave it out."
            )
        self.policies, self.config = dict(policies), config
        self._predictor = Predictor(policies, config)
        self.metrics = Metrics((_OK, *KINDS, _LEFT), get_args(Source))
        self.metadata = metadata(self.policies, config)
        self.stopping = False
        self._rename = {dotted(theirs): ours for theirs, ours in config.rename.items()}
        self._sessions = self._answering = 0
        self._batcher = Batcher(self._predictor.predict, config, self.metrics, self.sessions)
        self.metrics.gauge("vla_mot_sessions", "connected clients", self.sessions)

    async def warm_up(self) -> None:
        """Predict once for every robot, where later predictions run."""
        await self._batcher.run_beside(self._predictor.warm_up)

    def sessions(self) -> int:
        """Connected clients."""
        return self._sessions

    def answering(self) -> int:
        """Requests that came and whose reply was not made yet."""
        return self._answering

    def ailing(self) -> str:
        """Why no answer can be counted on now: the server ends, is stuck or fails; empty where all is well."""
        return "stopping" if self.stopping else self._batcher.ailing()

    def busy(self) -> bool:
        """Whether the worker is at something, which nothing can stop."""
        return self._batcher.busy()

    def full(self) -> RequestError | None:
        """Why no further client is taken now, if so."""
        if self.stopping:
            return RequestError("stopping", "the server ends.")
        if self._sessions >= self.config.max_sessions:
            return RequestError("busy", f"{self._sessions} clients are connected, which is all that may be.")
        return None

    def open(self) -> ClientSession:
        """A session for one more client. Raises RequestError when there are too many, or the server ends."""
        if (problem := self.full()) is not None:
            raise problem
        self._sessions += 1
        return ClientSession(self.config)

    def close(self, session: ClientSession) -> None:
        """The client is gone."""
        self._sessions -= 1
        self._batcher.never(session)

    async def stop(self) -> bool:
        """Take no more requests, answer those that came within `drain_seconds`, then end the worker.

        Returns whether all were answered.
        """
        self.stopping = True
        loop = asyncio.get_running_loop()
        until = loop.time() + self.config.drain_seconds
        while self._answering and loop.time() < until:
            await asyncio.sleep(0.01)
        answered = not self._answering
        await self._batcher.close()
        return answered

    def prepare(self, session: ClientSession, message: bytes | str) -> Work | dict[str, Any]:
        """Read one message into what the policy has to do, or into the reply where it need not do anything.

        Raises RequestError saying what does not fit. Fast, and never touches the model.
        """
        if isinstance(message, str):
            raise invalid("a request is a binary message of msgpack, not a text.")
        parts = flatten(decode(message), self._rename)
        asked = take_controls(parts)
        if asked.reset and not parts and not asked.remember:
            named = asked.embodiment is not None
            session.control(asked, self._robot(asked, session) if named else None)
            return {"reset": True, "seed": session.seed}
        name = self._robot(asked, session)
        policy = self.policies[name]
        body, size = policy.robot.embodiment, policy.spec.model.view_size
        seen = read_seen(parts, body, size, only_images=asked.remember)
        offset = policy.history_steps
        _require_sense(asked, seen)
        session.require(asked, name, seen)
        session.control(asked, name)  # from here on nothing is wrong with the request itself
        if asked.step is not None:
            session.remember(seen, asked.step, offset)
        if asked.remember:
            self._encode_later(name, session, asked.step, seen)
            return {"remembered": asked.step}
        found = session.history(seen, asked.step, offset)
        row = self._row(name, session, seen, found, asked)
        limit = asked.deadline_ms if asked.deadline_ms is not None else self.config.deadline_ms
        return Work(row, found, asked.step, limit)

    async def answer(self, session: ClientSession, message: bytes | str) -> bytes | str:
        """The reply to one message: bytes, or a text that begins with the kind of its error. Never raises."""
        self._answering += 1
        outcome = _LEFT
        try:
            if self.stopping:
                raise RequestError("stopping", "the server ends and takes no more requests.")
            reply = await self._reply(session, message)
            outcome = _OK
            return reply
        except RequestError as error:
            outcome = error.kind
            return str(error)
        except Exception:
            outcome = "failed"
            mark = secrets.token_hex(4)
            _log.exception("a request failed unexpectedly (%s)", mark)
            return f"failed: something unexpected; the server's log has it under {mark}."
        finally:
            self.metrics.requests.add(outcome)
            self._answering -= 1

    async def _reply(self, session: ClientSession, message: bytes | str) -> bytes:
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        work = self.prepare(session, message)
        if isinstance(work, dict):
            return encode(work)
        deadline = None if work.deadline_ms is None else arrived + work.deadline_ms / 1000
        answer = await self._batcher.submit(work.row, deadline)
        session.answered(work.step, answer.actions)
        self.metrics.history.add(work.history.source)
        seconds = loop.time() - arrived
        self.metrics.seconds.add(seconds)
        reply = _reply_of(work, answer, seconds, session.previous_ms)
        session.previous_ms = seconds * 1000
        return encode(reply)

    def _robot(self, asked: Controls, session: ClientSession) -> str:
        """The robot that is asked for, else the episode's, else the only one."""
        name = asked.embodiment
        if name is None and not asked.reset:
            name = session.robot
        if name is None:
            if len(self.policies) > 1:
                raise invalid(f"say embodiment = …: this server drives {', '.join(self.policies)}.")
            name = next(iter(self.policies))
        if name not in self.policies:
            raise invalid(unknown_name("embodiment", name[:80], self.policies))
        return name

    def _encode_later(self, name: str, session: ClientSession, step: int | None, seen: Seen) -> None:
        """Have frames that are remembered encoded before they are history, where latents are remembered, too."""
        if session.latents is not None and step is not None:
            work = partial(self._predictor.encode, name, session.latents, step, seen.images)
            self._batcher.later(session, work)

    def _row(self, name: str, session: ClientSession, seen: Seen, found: History, asked: Controls) -> Row:
        assert seen.state is not None, "read_seen reads the state unless only_images"
        row = Row(
            robot=name,
            past=found.frame,
            present=seen.images,
            state=seen.state,
            instruction=seen.instruction,
            seed=session.seed,
            call=session.calls,
            episode=session.key,
            known=_known(session, found, asked.step),
        )
        if asked.delay is None:
            return row
        left = session.left_over(asked.step) if seen.left_over is None else seen.left_over
        return row if left is None else replace(row, left_over=left, delay=min(asked.delay, len(left)))


def _known(session: ClientSession, found: History, step: int | None) -> Known | None:
    if session.latents is None or found.step is None or step is None:
        return None
    return Known(session.latents, found.step, step)


def _require_sense(asked: Controls, seen: Seen) -> None:
    if asked.remember and asked.step is None:
        raise invalid("remember = true keeps the pictures of a 'step'; say which.")
    if seen.left_over is not None and asked.delay is None:
        raise invalid("left_over needs a delay: how many of its steps will have been executed.")
    if asked.delay is not None and asked.step is None and seen.left_over is None:
        raise invalid("delay goes on with the last chunk from a 'step' on: say which, or send 'left_over'.")


def _reply_of(work: Work, answer: Answer, seconds: float, previous_ms: float | None) -> dict[str, Any]:
    """openpi's names for actions and timing; its clients cut every array along the chunk, so there is just one."""
    left = work.row.left_over
    server = {"infer_ms": seconds * 1000, "queue_ms": answer.waited * 1000, "batch_size": answer.batch}
    if previous_ms is not None:
        server["prev_total_ms"] = previous_ms
    return {
        "actions": answer.actions,
        "server_timing": server,
        "policy_timing": {"infer_ms": answer.computed * 1000},
        "history": {"source": work.history.source, "age_steps": work.history.age},
        "understanding": {"age_calls": answer.understanding_age},
        "noise": {"seed": work.row.seed, "call": work.row.call},
        "continued": None if left is None else {"steps": len(left), "delay": work.row.delay},
        "step": work.step,
    }
