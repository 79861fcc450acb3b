"""Compress, convert, optimise, verify: artifacts in, artifacts and reports out. Knows no HTTP and no callers."""
