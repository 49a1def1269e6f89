"""Checkpoints and what they need: files, resuming, stopping, the lock of a folder, sharded state."""
