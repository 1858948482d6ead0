"""What LeRobot discovers by its name: importing it registers the policy types `vla_mot`, `qwena1` and `interna1`."""

import vla_mot.policy  # noqa: F401
