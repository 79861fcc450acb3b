"""Alembic runs the migrations on the connection that `open_database` hands over."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
if context.config.attributes["connection"].dialect.name == "postgresql":
    context.config.attributes["connection"].exec_driver_sql("SELECT pg_advisory_xact_lock(7461)")
with context.begin_transaction():
    context.run_migrations()
