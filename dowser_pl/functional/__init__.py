"""Pure tensor functions, one equation each. They import torch and nothing else."""
