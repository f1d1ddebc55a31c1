"""The command line of `fit`, `validate`, `test` and `predict`: LightningCLI, and what its arguments may be."""
