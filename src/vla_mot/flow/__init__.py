"""Flow matching: noise levels, keyed noise, interpolation, velocity and its integration."""
