"""Which instances may be given work: active checks, real traffic, and what follows from both."""
