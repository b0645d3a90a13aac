"""Guidance schedules: curves, expressions, presets, and their preview."""
