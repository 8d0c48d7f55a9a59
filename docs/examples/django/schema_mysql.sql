-- As schema.sql, for a rehearsal with `--engine mysql`.
CREATE TABLE ledger (
    seq bigint PRIMARY KEY AUTO_INCREMENT,
    worker integer NOT NULL,
    thread integer NOT NULL,
    n integer NOT NULL
);
