"""What is asked of a candidate and its source, how finely, and when the answers count as the same."""
