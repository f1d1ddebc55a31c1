"""The callback that runs the importance pass before training and protects the frozen entries during it."""
