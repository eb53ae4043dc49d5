"""Sans-IO protocols: bytes in, events out. Nothing here awaits, logs or reads a clock."""
