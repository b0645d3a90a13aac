"""A guidance scale over the run: curves, expressions, presets, their picture."""
