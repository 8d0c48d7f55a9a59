"""The lab's servers that speak MySQL's protocol, of two families: MariaDB and MySQL."""
