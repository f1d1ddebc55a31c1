"""Pure tensor functions, one equation each. They import torch and our errors alone."""
