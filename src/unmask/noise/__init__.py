"""Forward processes: how clean text is corrupted for training."""
