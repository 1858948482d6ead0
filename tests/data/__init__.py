"""Tests of vla_mot.data, on datasets that lerobot's own writer recorded."""
