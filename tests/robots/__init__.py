"""Tests of vla_mot.robots."""
