"""The configuration: its form (schema), its values and how a file becomes one (load)."""
