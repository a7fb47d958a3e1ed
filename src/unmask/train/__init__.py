"""Training: recipes, data, objectives, optimisers, the loop and its checkpoints."""
