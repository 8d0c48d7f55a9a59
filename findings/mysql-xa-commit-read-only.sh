#!/usr/bin/env bash
# MySQL: XA COMMIT writes on a server that is super_read_only, after the position up to which replicas were waited for.
#
# Versions: MySQL 9.7.4 of Debian unstable's mysql-server-core (fetched by tests/fetch_mysql.sh), PyMySQL 1.2.4, Python
#   3.11. (By hand MariaDB 10.11.19 refuses XA COMMIT with 1290.)
# Behaviour: with super_read_only = ON the COMMIT of a transaction is refused with 1290. XA COMMIT of a transaction that
#   was prepared before succeeds for an ordinary account, and is written to the binary log. In a switchover by hand
#   (read-only, note the position, wait until the replica is there, promote it) the row is on the old primary alone,
#   although its client received OK.
# Expected: 1290, as for COMMIT: the transaction stays prepared, and the replica has it, too.
# Seen: COMMIT: 1290, XA COMMIT: OK, rows: xa, the binary log has grown: True
set -euo pipefail
fetch=$(realpath "$(dirname "$0")/../tests/fetch_mysql.sh")
work=$(mktemp -d)
mysql=$(realpath -m "${MYSQL:-$work/mysql}") # MYSQL may name the directory of an earlier fetch_mysql.sh
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
sh "$fetch" "$mysql" >/dev/null
"$mysql/bin/mysqld" --no-defaults --version | grep -q "Ver 9\.7\.4" || { echo "another version of MySQL"; exit 1; }
mkdir "$work/db"
as=()
if [ "$(id -u)" = 0 ]; then # MySQL refuses to run as root
    as=(--user=nobody)
    chown nobody "$work/db"
fi
mysqld=("$mysql/bin/mysqld" --no-defaults "${as[@]}" "--datadir=$work/db/data" "--tmpdir=$work/db"
    --secure-file-priv= "--lc-messages-dir=$mysql/share/mysql" --innodb-redo-log-capacity=8M)
"${mysqld[@]}" --initialize-insecure --skip-log-bin >"$work/db/log" 2>&1
"${mysqld[@]}" --skip-networking --mysqlx=0 --log-bin=binlog --server-id=1 "--socket=$work/db/socket" \
    "--pid-file=$work/db/pid" >>"$work/db/log" 2>&1 &
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


def ask(statement):
    with operator.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


operator = connect("root", autocommit=True)
for statement in (
    "CREATE DATABASE shop",
    "CREATE TABLE shop.orders (item varchar(20))",
    "CREATE USER app@localhost",
    "GRANT ALL ON shop.* TO app@localhost",
):
    ask(statement)
with connect("app", database="shop") as ordinary, connect("app", database="shop") as xa:
    ordinary.cursor().execute("INSERT INTO orders VALUES ('ordinary')")
    for statement in ("XA START 'x'", "INSERT INTO orders VALUES ('xa')", "XA END 'x'", "XA PREPARE 'x'"):
        xa.cursor().execute(statement)
    ask("SET GLOBAL super_read_only = ON")
    before = ask("SHOW BINARY LOG STATUS")[0][1]
    answers = attempt(ordinary, "COMMIT"), attempt(xa, "XA COMMIT 'x'")
    has_grown = ask("SHOW BINARY LOG STATUS")[0][1] > before
    rows = [item for (item,) in ask("SELECT item FROM shop.orders")]
print(f"COMMIT: {answers[0]}, XA COMMIT: {answers[1]}, rows: {' '.join(rows)}, the binary log has grown: {has_grown}")
if (*answers, rows, has_grown) != (1290, "OK", ["xa"], True):
    raise SystemExit("the behaviour has changed")
PY
