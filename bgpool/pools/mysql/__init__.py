"""The MySQL pool: PyMySQL connections, kept by DBUtils, behind the gate."""
