#!/usr/bin/env bash
# MariaDB: when a COMMIT is killed while it waits, its client gets error 2013, reads no row, and later the row is there.
#
# Versions: MariaDB 10.11.19 of Debian 12's mariadb-server-core, PyMySQL 1.2.4, Python 3.11. (By hand MySQL 9.7.4 did
#   the same, with binlog_group_commit_sync_delay.)
# Behaviour: KILL CONNECTION of a session whose COMMIT waits in a group commit (binlog_commit_wait_usec) closes its
#   socket at once; the client gets 2013. The COMMIT continues to wait for others, to be written together with them, and
#   commits. A client that connects again finds no row, repeats the work, and ends with two rows. In processlist the
#   session is there until the end, as "Killed". Where the COMMIT waits for FLUSH TABLES WITH READ LOCK instead, the
#   same KILL rolls back.
# Expected: the client learns that its session has ended only after it has ended, or nothing is committed afterwards.
# Seen: group commit: 2013 after 0.0 s, rows: 0, and 1 when the session has gone
#   read lock: 2013 after 0.0 s, rows: 0, and 0 when the session has gone
set -euo pipefail
work=$(mktemp -d)
server=
stop() {
    [ -z "$server" ] || { kill "$server" && wait "$server"; } 2>/dev/null || true
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM
chmod 755 "$work"
cd "$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "PyMySQL==1.2.4"
apt-get -qq -o APT::Sandbox::User=root download "mariadb-server-core=1:10.11.19-0+deb12u1"
dpkg-deb --extract mariadb-server-core_*.deb "$work/deb"
share=$work/deb/usr/share/mysql
mkdir "$work/db" "$work/db/data"
as=()
if [ "$(id -u)" = 0 ]; then # MariaDB refuses to run as root
    as=(--user=nobody)
    chown -R nobody "$work/db"
fi
mariadbd=("$work/deb/usr/sbin/mariadbd" --no-defaults "${as[@]}" "--datadir=$work/db/data" "--tmpdir=$work/db"
    "--lc-messages-dir=$share" "--character-sets-dir=$share/charsets" --innodb-log-file-size=8M)
{
    printf 'CREATE DATABASE mysql;\nUSE mysql;\n'
    cat "$share/mysql_system_tables.sql"
    printf 'FLUSH PRIVILEGES;\nCREATE USER root@localhost;\nGRANT ALL ON *.* TO root@localhost;\n'
    printf 'CREATE DATABASE shop;\n'
} | "${mariadbd[@]}" --bootstrap >"$work/db/log" 2>&1
"${mariadbd[@]}" --skip-networking "--log-bin=$work/db/data/binlog" --server-id=1 "--socket=$work/db/socket" \
    "--pid-file=$work/db/pid" >>"$work/db/log" 2>&1 &
server=$!
for _ in $(seq 150); do grep -q "ready for connections" "$work/db/log" && break || sleep 0.2; done
"$work/venv/bin/python" - "$work/db/socket" <<'PY'
import sys
import threading
import time

import pymysql


def connect():
    return pymysql.connect(unix_socket=sys.argv[1], user="root", database="shop", autocommit=True, read_timeout=20)


def ask(statement):
    with connect() as other, other.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


operator = connect()
operator.cursor().execute("CREATE TABLE orders (item varchar(20)) ENGINE = InnoDB")


def attempt(what, begin, end):
    operator.cursor().execute("DELETE FROM orders")
    app = connect()
    app.begin()
    app.cursor().execute("INSERT INTO orders VALUES ('tea')")
    for statement in begin:
        operator.cursor().execute(statement)
    heard = []

    def commit():
        try:
            app.commit()
            heard.append("OK")
        except pymysql.MySQLError as error:
            heard.append(error.args[0])

    committer = threading.Thread(target=commit, daemon=True)
    committer.start()
    session = f"FROM information_schema.processlist WHERE id = {app.thread_id()}"
    wait_until(lambda: ask(f"SELECT info {session}") == (("COMMIT",),))
    began = time.monotonic()
    operator.cursor().execute(f"KILL CONNECTION {app.thread_id()}")
    committer.join(10)
    took = time.monotonic() - began
    at_once = ask("SELECT count(*) FROM orders")[0][0]
    for statement in end:
        operator.cursor().execute(statement)
    wait_until(lambda: not ask(f"SELECT 1 {session}"))
    later = ask("SELECT count(*) FROM orders")[0][0]
    print(f"{what}: {heard[0]} after {took:.1f} s, rows: {at_once}, and {later} when the session has gone")
    return heard[0], at_once, later


grouped = attempt(
    "group commit",
    ("SET GLOBAL binlog_commit_wait_usec = 3000000", "SET GLOBAL binlog_commit_wait_count = 100"),
    ("SET GLOBAL binlog_commit_wait_count = 0", "SET GLOBAL binlog_commit_wait_usec = 0"),
)
locked = attempt("read lock", ("FLUSH TABLES WITH READ LOCK",), ("UNLOCK TABLES",))
if (grouped, locked) != ((2013, 0, 1), (2013, 0, 0)):
    raise SystemExit("the behaviour has changed")
PY
