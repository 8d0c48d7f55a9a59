"""The pure core: the state machine of a switchover and its consequences for a pool. No I/O, no clock, no threads."""
