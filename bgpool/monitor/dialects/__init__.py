"""The metadata of each engine, and the queries for them."""
