"""Checkpoint layouts: what is on disk, read strictly and written completely."""
