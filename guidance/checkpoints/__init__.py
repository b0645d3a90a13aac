"""Every model file that is opened: detect, describe, load strictly, save."""
