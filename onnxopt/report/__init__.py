"""What a run has to tell: as data, and as tables in a terminal."""
