"""Tests mirror src/vla_mot. A package, because a dependency installs a top-level `tests` too."""
