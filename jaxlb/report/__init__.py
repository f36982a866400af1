"""Pictures of results; needs the `plot` extra."""
