"""An application that writes one row per request. The rows show if a switchover lost or doubled any."""
