"""Estimators of importance: what is compared, exact sensitivities, shifts of the output, fine-tunings."""
