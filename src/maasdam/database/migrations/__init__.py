"""The schema, one numbered file a change; run by `open_database`."""
