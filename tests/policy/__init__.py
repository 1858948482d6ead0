"""Tests of vla_mot.policy, against stock LeRobot."""
