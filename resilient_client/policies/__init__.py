"""What stands around a handler: one module per policy, each of which also works alone."""
