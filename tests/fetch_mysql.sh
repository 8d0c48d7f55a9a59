#!/bin/sh
# fetch_mysql.sh DIR: put a MySQL server from Debian unstable into DIR, with the libraries that it needs. Installs nothing. Needs
# Debian's apt and dpkg; packages come from the machine's own mirror. DIR/bin/mysqld starts the server with DIR's loader and libraries.
set -eu
dir=$(realpath -m "$1")
[ -x "$dir/bin/mysqld" ] && exit 0
mirror=$(cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null |
    sed -n -e 's/^URIs: *\([^ ]*\).*/\1/p' -e 's/^deb \(\[.*\] \)\?\([^ ]*\).*/\2/p' | head -n 1)
fail() {
    echo "$1; run make mysql MYSQLD=/path/to/mysqld" >&2
    exit 1
}
[ -n "$mirror" ] || fail "no Debian mirror in /etc/apt"
mkdir -p "$dir/apt/lists/partial" "$dir/apt/archives/partial" "$dir/root" "$dir/bin" "$dir/share"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$dir/apt/sources.list"
# An apt of its own: no package counts as installed, so that all dependencies are fetched, libc included.
own() {
    apt-get -qq -o APT::Update::Error-Mode=any -o Dir::Etc::SourceList="$dir/apt/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State="$dir/apt" \
        -o Dir::State::status="$dir/apt/status" -o Dir::Cache="$dir/apt" -o APT::Sandbox::User=root "$@"
}
: >"$dir/apt/status"
own update && own install --download-only --yes --no-install-recommends mysql-server-core ||
    fail "Debian unstable's mysql-server-core cannot be fetched from $mirror"
for package in "$dir"/apt/archives/*.deb; do dpkg-deb --extract "$package" "$dir/root"; done
rm -r "$dir/apt"
ln -sfn ../root/usr/share/mysql "$dir/share/mysql"
ln -sfn root/usr/lib "$dir/lib"
loader=$(find "$dir/root" -name 'ld-linux*.so.*' | head -n 1)
libraries=$(dirname "$(find "$dir/root" -name libc.so.6)")
cat >"$dir/bin/mysqld.new" <<END
#!/bin/sh
exec '$loader' --library-path '$libraries:$dir/root/usr/lib/mysql/private' '$dir/root/usr/sbin/mysqld' "\$@"
END
chmod 755 "$dir/bin/mysqld.new"
"$dir/bin/mysqld.new" --no-defaults --version
mv "$dir/bin/mysqld.new" "$dir/bin/mysqld"
