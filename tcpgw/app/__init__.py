"""The composition root: only here are concrete classes picked, and the whole configuration seen."""
