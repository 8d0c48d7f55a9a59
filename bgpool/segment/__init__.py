"""The segment: one mapped file per bg_id, written by one monitor and read by every worker without a lock."""
