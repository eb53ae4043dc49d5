"""The stream plane: accept, connect, relay, close with one reason."""
