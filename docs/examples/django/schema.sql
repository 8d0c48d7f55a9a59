-- For both PostgreSQL and MySQL. A rehearsal loads this file, because its servers do not exist before it starts.
CREATE TABLE ledger (
    seq serial PRIMARY KEY,
    worker integer NOT NULL,
    thread integer NOT NULL,
    n integer NOT NULL
);
