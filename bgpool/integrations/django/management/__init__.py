"""Django's management commands: a command line interface like bgpool.cli."""
