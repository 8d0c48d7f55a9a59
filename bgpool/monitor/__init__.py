"""The monitor: one elected process per host and bg_id, the only one that talks to the deployment's metadata."""
