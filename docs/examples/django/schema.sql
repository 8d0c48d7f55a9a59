-- For PostgreSQL and MySQL alike. A rehearsal has no server that a migration would reach before.
CREATE TABLE ledger (
    seq serial PRIMARY KEY,
    worker integer NOT NULL,
    thread integer NOT NULL,
    n integer NOT NULL
);
