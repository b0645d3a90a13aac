"""Training what guidance needs: a noisy classifier, a diffusion model with label dropout."""
