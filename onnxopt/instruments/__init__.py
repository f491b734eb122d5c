"""Observers of the pass manager, and the judgements they share with the end of a run."""
