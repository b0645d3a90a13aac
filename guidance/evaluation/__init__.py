"""How well samples follow their class, and what they cost."""
