"""Model files: detection, description, strict loading and saving."""
