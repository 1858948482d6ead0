"""LeRobot's asynchronous policy server for a vla_mot policy; LeRobot's own client talks to it unchanged.

python -m vla_mot.policy.async_server       --host=127.0.0.1 --port=8080 --fps=30
python -m lerobot.async_inference.robot_client --server_address=127.0.0.1:8080 --policy_type=vla_mot
    --pretrained_name_or_path=<checkpoint> --actions_per_chunk=50 --robot.type=… --task="…"

Needs `lerobot[async]`. LeRobot 0.6.1 looks for no plugins there: its server takes the types in the list
`async_inference.constants.SUPPORTED_POLICIES` and no other. So a process of our own writes `vla_mot` into that list,
in its own memory, and starts LeRobot's server; no file of LeRobot's changes, and none of its code is copied. The
subclass below mends what that server assumes of every policy and is not so with ours.

The protocol sends pickles, which can run anything: serve to machines that you trust, or use `vla-mot serve`.
"""

from collections import deque
from concurrent import futures
from typing import Any

import draccus
import grpc
from lerobot.async_inference.configs import PolicyServerConfig
from lerobot.async_inference.constants import SUPPORTED_POLICIES
from lerobot.async_inference.helpers import TimedObservation, raw_observation_to_observation
from lerobot.async_inference.policy_server import PolicyServer
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.transport import services_pb2_grpc
from torch import Tensor

from vla_mot.policy.modeling_vla_mot import VlaMotPolicy

_WORKERS = 4  # threads, as LeRobot's


class VlaMotPolicyServer(PolicyServer):
    """LeRobot's server, but for three things.

    Pictures reach the policy as the cameras took them: it resizes without distortion, as in training. The history is
    the observation that was received nearest to m control steps before the present one, by the client's clock;
    chunks are predicted too rarely for their own observations to serve. And what was seen counts as news although
    the joints moved by less than 1, in units that LeRobot does not know and that may be metres or radians.
    """

    def __init__(self, config: PolicyServerConfig) -> None:
        super().__init__(config)
        self._received: deque[TimedObservation] = deque()

    @property
    def policy_image_features(self) -> dict[str, PolicyFeature]:
        """The robot's own sizes, so that LeRobot's helper, which resizes to these, changes nothing."""
        return {
            key: PolicyFeature(FeatureType.VISUAL, (shape[2], *shape[:2]))
            for key, feature in self.lerobot_features.items()
            if len(shape := feature["shape"]) == 3
        }

    def _reset_server(self) -> None:
        super()._reset_server()
        self._received.clear()

    def _enqueue_observation(self, obs: TimedObservation) -> bool:
        self._received.append(obs)
        since = (
            obs.get_timestamp() - 2 * self._history_seconds
        )  # the one under way may be older than the newest
        while len(self._received) > 1 and self._received[1].get_timestamp() < since:
            self._received.popleft()
        taken: bool = super()._enqueue_observation(obs)
        return taken

    def _obs_sanity_checks(self, obs: TimedObservation, previous_obs: TimedObservation) -> bool:
        with self._predicted_timesteps_lock:
            return obs.get_timestep() not in self._predicted_timesteps

    def _get_action_chunk(self, observation: dict[str, Any]) -> Tensor:
        past = self._nearest(self.last_processed_obs.get_timestamp() - self._history_seconds)
        seen = raw_observation_to_observation(
            past.get_observation(), self.lerobot_features, self.policy_image_features
        )
        chunk: Tensor = self.policy.predict_action_chunk(observation, past=self.preprocessor(seen))
        return chunk[:, : self.actions_per_chunk]

    def _nearest(self, wanted: float) -> TimedObservation:
        """Of the observations not newer than the present one, that received nearest to a moment, in seconds."""
        present = self.last_processed_obs
        known = [seen for seen in list(self._received) if seen.get_timestamp() <= present.get_timestamp()]
        return min(known or [present], key=lambda seen: abs(seen.get_timestamp() - wanted))

    @property
    def _history_seconds(self) -> float:
        policy: VlaMotPolicy = self.policy
        robot = policy.spec.robot(policy.config.embodiment, policy.config.action_mode)
        return policy.spec.model.offset(robot.embodiment) / (robot.embodiment.fps or self.config.fps)


def allow() -> None:
    """Let LeRobot's server of this process take our type, and none that this one was not made for."""
    SUPPORTED_POLICIES[:] = [VlaMotPolicy.name]


@draccus.wrap()
def serve(config: PolicyServerConfig) -> None:
    """Serve until the process is ended. config: LeRobot's own options."""
    allow()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=_WORKERS))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(VlaMotPolicyServer(config), server)
    server.add_insecure_port(f"{config.host}:{config.port}")
    server.start()
    VlaMotPolicyServer.logger.info(f"serving {VlaMotPolicy.name} policies on {config.host}:{config.port}")
    server.wait_for_termination()


if __name__ == "__main__":
    serve()
