"""Who asks, what they used, and what it cost."""
