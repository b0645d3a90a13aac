"""The code that runs at each evaluation of a patched model."""
