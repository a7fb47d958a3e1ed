"""Tasks to score a model on, one file each."""
