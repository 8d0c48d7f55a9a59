"""The configuration of the lab's servers, as text."""

from __future__ import annotations

SUPERUSER = "postgres"

POSTGRESQL_CONF = """
max_connections = 200
superuser_reserved_connections = 10     # the lab can connect with any number of clients
shared_buffers = 32MB
dynamic_shared_memory_type = mmap       # below the data directory: a killed server leaves nothing in /dev/shm
jit = off

# A crash of the machine loses the lab, not data: no fsync. A crash of the server alone loses nothing.
fsync = off
full_page_writes = off
synchronous_commit = on

wal_level = logical
max_wal_senders = 10
max_replication_slots = 10
wal_keep_size = 512MB                   # instead of a slot, which would outlive a green that was removed
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 100ms
hot_standby = on
hot_standby_feedback = on
max_standby_streaming_delay = 1s

password_encryption = scram-sha-256
timezone = UTC
log_timezone = UTC
log_line_prefix = '%m [%p] %q%u@%d %a %h '
"""

HBA_LAB = """\
# The lab's own sessions and replication: the socket's directory is closed to others.
local all         postgres trust
local replication postgres trust
"""

HBA_ADMIT = "host  all all 127.0.0.0/8 scram-sha-256\n"
HBA_REFUSE = "host  all {role} 127.0.0.0/8 reject\n"

TEMPLATE_PORT = 5432
"""Part of the name of a socket in a directory of its own; nothing listens there."""
