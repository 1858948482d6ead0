"""A client of `vla-mot serve`, without torch.

from vla_mot_client import Client

with Client("10.0.0.7", 8000, token="…") as client:
    client.reset()
    reply = client.infer({"observation.images.head": head, "observation.state": state, "prompt": task, "step": 0})
    actions = reply["actions"]  # (chunk, action dims), absolute, in physical units

`Driver` hands out one action per control step instead; `vla_mot_client.robotwin` is RoboTwin's policy interface.
"""

from .client import Client
from .codec import decode, encode
from .driver import Driver
from .errors import ClientError, ConnectionLostError, ServerError

__all__ = ["Client", "ClientError", "ConnectionLostError", "Driver", "ServerError", "decode", "encode"]
