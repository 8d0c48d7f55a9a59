"""The pools, in every process of the application: they read the segment and act on it."""
