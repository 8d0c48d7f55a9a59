"""The pure core: what a switchover is, and what it means for a pool. No I/O, no clock, no threads."""
