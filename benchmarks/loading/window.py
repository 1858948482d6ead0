"""What both libraries are asked for: three frames of two cameras, and a chunk of actions."""

FPS = 30
PIXELS = 64  # side of the recorded pictures
VIEW = (48, 48)  # (height, width) of the model's view, so that both sides resize
OFFSET = 15  # m, frames
CHUNK = 50  # actions
CAMERAS = ("observation.images.head", "observation.images.wrist")
STATE, ACTION = "observation.state", "action"
