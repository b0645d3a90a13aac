"""Evaluation of samples: how well they follow their class, and their cost."""
