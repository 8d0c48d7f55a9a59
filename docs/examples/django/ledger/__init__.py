"""An application that writes one row a request, so that a switchover can be judged by its rows."""
