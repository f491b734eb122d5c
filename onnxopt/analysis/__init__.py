"""Read-only questions to a model. Nothing in here changes one."""
