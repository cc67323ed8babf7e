"""Training: labels, query points, losses, presets and the loop. Inference imports nothing from here."""
