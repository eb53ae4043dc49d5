"""Where the endpoints of a service come from."""
