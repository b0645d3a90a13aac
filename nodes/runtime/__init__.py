"""What runs at each evaluation of a model that the nodes have patched."""
