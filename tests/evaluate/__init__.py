"""Tests of vla_mot.evaluate."""
