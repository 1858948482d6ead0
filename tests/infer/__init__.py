"""Tests of vla_mot.infer, and the checkpoint layout that it opens."""
