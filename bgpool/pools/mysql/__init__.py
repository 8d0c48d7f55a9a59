"""The MySQL pool: PyMySQL connections behind the gate."""
