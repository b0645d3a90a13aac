"""Steps, the loop over them, and the guidance in it."""
