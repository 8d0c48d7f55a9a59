#!/usr/bin/env bash
# SQLAlchemy with PyMySQL: ssl_ca of a URL is forgotten where ssl_verify_identity or ssl_verify_cert is given as well.
#
# Versions: SQLAlchemy 2.1.9, PyMySQL 1.2.4, Python 3.11 (no server is needed).
# Behaviour: SQLAlchemy takes ssl_ca, ssl_cert, ssl_key, ssl_capath, ssl_cipher and ssl_check_hostname out of the URL and
#   passes them in the dict ssl (sqlalchemy/dialects/mysql/mysqldb.py). ssl_verify_identity and ssl_verify_cert, which
#   PyMySQL documents beside ssl_ca, it passes as they are. PyMySQL makes a dict of its own as soon as one ssl_ keyword is
#   given, and drops the one that it was given (pymysql/connections.py).
# Expected: mysql+pymysql://…?ssl_ca=FILE&ssl_verify_identity=true checks the server's certificate against FILE, and its
#   name; ssl_ca=FILE alone does both.
# Seen: the authorities of the system instead of FILE's, so that a server with a certificate of FILE's is refused.
#   Names are not compared.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "sqlalchemy==2.1.9" "PyMySQL==1.2.4" "trustme==1.2.1"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import pymysql
import trustme
from sqlalchemy import make_url

authority = trustme.CA()
authority.cert_pem.write_to_path("ca.pem")
mine = {"organizationName": "trustme v" + trustme.__version__}


def context(query):
    """Whether the file's authority is trusted, and whether names are compared, by a connection that is not opened."""
    url = make_url("mysql+pymysql://app@localhost/app?" + query)
    _, params = url.get_dialect()(dbapi=pymysql).create_connect_args(url)
    found = pymysql.Connection(**params, defer_connect=True).ctx
    subjects = [dict(pair[0] for pair in ca["subject"]) for ca in found.get_ca_certs()]
    return any(mine.items() <= subject.items() for subject in subjects), found.check_hostname


seen = {query: context("ssl_ca=ca.pem" + query) for query in ("", "&ssl_verify_identity=true", "&ssl_verify_cert=true")}
for query, (trusted, compared) in seen.items():
    print(f"ssl_ca=ca.pem{query}: authority {'trusted' if trusted else 'forgotten'}, names compared: {compared}")
if list(seen.values()) != [(True, True), (False, False), (False, False)]:
    raise SystemExit("the behaviour has changed")
PY
