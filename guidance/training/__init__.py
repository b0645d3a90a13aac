"""Training of a noisy classifier, or of a diffusion model with label dropout."""
