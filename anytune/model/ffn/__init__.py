"""What each token goes through alone: one file a kind."""
