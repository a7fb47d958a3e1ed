"""Models: one transformer, families (config mapping, tensor names, traits, recommended settings), loading and saving."""
