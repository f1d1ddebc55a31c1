"""Pictures of runs. They import matplotlib when they are drawn, not before."""
