"""The embedded world's model before training, and what it is trained on."""
