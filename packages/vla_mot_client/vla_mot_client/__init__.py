"""A client of `vla-mot serve`, without torch.

from vla_mot_client import Client

with Client("10.0.0.7", 8000, token="…") as client:
    client.reset()
    reply = client.infer({"observation.images.head": head, "observation.state": state, "prompt": task, "step": 0})
    actions = reply["actions"]  # (chunk, action dims), absolute, in physical units
"""

from .client import Client
from .codec import decode, encode
from .errors import ClientError, ConnectionLostError, ServerError

__all__ = ["Client", "ClientError", "ConnectionLostError", "ServerError", "decode", "encode"]
