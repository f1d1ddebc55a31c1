"""A real model and its tasks, out of packages of public registries."""
