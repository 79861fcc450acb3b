"""Rows that outlive a process: SQLite (WAL) for one machine, PostgreSQL for many."""
