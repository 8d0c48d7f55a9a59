#!/usr/bin/env bash
# MariaDB: a COMMIT that a read-only server refuses has rolled back, and the next COMMIT succeeds without any row.
#
# Versions: MariaDB 10.11.19 of Debian 12's mariadb-server-core, PyMySQL 1.2.4, Python 3.11. (By hand MySQL 9.7.4 did
#   the same.)
# Behaviour: after SET GLOBAL read_only = 1 an INSERT and the COMMIT of earlier rows both fail with 1290 and the same
#   text. After the error of the INSERT the transaction is open, with its rows, and a later COMMIT commits them. After
#   the error of the COMMIT the transaction is rolled back, and the error does not show it. Once the server accepts
#   writes again, the next COMMIT succeeds without any row, so a caller that retries a refused COMMIT assumes that the
#   rows are committed.
# Expected: the transaction stays open, as after the other 1290; or a different error, such as 1213 or 1402, which stand
#   for a rollback.
# Seen: write refused: 1290, then COMMIT is OK, rows: 1
#   COMMIT refused: 1290, then COMMIT is OK, rows: 0
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
    printf 'CREATE DATABASE shop;\nCREATE USER app@localhost;\nGRANT ALL ON shop.* TO app@localhost;\n'
} | "${mariadbd[@]}" --bootstrap >"$work/db/log" 2>&1
"${mariadbd[@]}" --skip-networking "--socket=$work/db/socket" "--pid-file=$work/db/pid" >>"$work/db/log" 2>&1 &
server=$!
for _ in $(seq 150); do grep -q "ready for connections" "$work/db/log" && break || sleep 0.2; done
"$work/venv/bin/python" - "$work/db/socket" <<'PY'
import sys

import pymysql


def connect(user, **kwargs):
    return pymysql.connect(unix_socket=sys.argv[1], user=user, read_timeout=20, **kwargs)


def attempt(connection, statement):
    try:
        connection.cursor().execute(statement)
    except pymysql.MySQLError as error:
        return error.args[0]
    return "OK"


def read_only(value):
    operator.cursor().execute(f"SET GLOBAL read_only = {value}")


def rows():
    with connect("app", database="shop") as other, other.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM orders")
        return cursor.fetchone()[0]


operator = connect("root", autocommit=True)
operator.cursor().execute("CREATE TABLE shop.orders (item varchar(20)) ENGINE = InnoDB")
seen = []
for what, refused in (("write", "INSERT INTO orders VALUES ('cup')"), ("COMMIT", "COMMIT")):
    operator.cursor().execute("DELETE FROM shop.orders")
    with connect("app", database="shop") as app:
        app.cursor().execute("INSERT INTO orders VALUES ('tea')")
        read_only(1)
        first = attempt(app, refused)
        read_only(0)
        seen.append((first, attempt(app, "COMMIT"), rows()))
        print("{} refused: {}, then COMMIT is {}, rows: {}".format(what, *seen[-1]))
if seen != [(1290, "OK", 1), (1290, "OK", 0)]:
    raise SystemExit("the behaviour has changed")
PY
