"""What each engine's metadata looks like, and how to ask for it."""
