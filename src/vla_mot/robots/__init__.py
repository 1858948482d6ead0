"""Robots in pure torch: embodiments, normalization, delta actions, image resizing, camera slots."""
