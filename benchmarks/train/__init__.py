"""The forms of training: models and batches, steps, memory, shares of each process."""
