"""Policy versions: what one is on disk, what it must show before it serves, and what is remembered of it after."""
