"""Models: one transformer; families (config, tensor names, traits, recommended settings); loading and saving."""
