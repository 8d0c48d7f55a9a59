"""Django's management commands: a command line of bgpool's, as bgpool.cli is."""
