"""What LeRobot discovers by its name: importing it registers the `vla_mot` policy and its processor steps."""

import vla_mot.policy  # noqa: F401
