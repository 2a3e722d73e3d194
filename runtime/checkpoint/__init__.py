"""Checkpoints that others wrote, read strictly: each becomes a sealed bundle, or an error that names its fault."""
