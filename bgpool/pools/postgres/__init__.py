"""The PostgreSQL pool: psycopg_pool behind the gate."""
