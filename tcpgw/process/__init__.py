"""The process and its host: signals, limits."""
