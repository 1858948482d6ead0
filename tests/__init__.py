"""Tests mirror src/vla_mot. A package, because one of our dependencies installs a top-level `tests` of its own."""
