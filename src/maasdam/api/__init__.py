"""The doors: HTTP in the standards' own words. Knows bytes, schemas and status codes; every answer comes from operations."""
