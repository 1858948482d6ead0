"""Training: objective, schedule, averaging, checkpoints and the loop."""
