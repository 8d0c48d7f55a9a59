"""A multiprocess-safe connection pool that carries applications through an RDS/Aurora Blue/Green switchover."""
