"""0001, 0002, … in order. A file that was released is never changed."""
