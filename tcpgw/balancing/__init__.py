"""Which endpoints serve a key, in which order. Pure: time and load are arguments."""
