"""Classifiers that can steer sampling: of noisy and of clean images."""
