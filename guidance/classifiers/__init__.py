"""What can steer: classifiers of noisy and of clean images."""
