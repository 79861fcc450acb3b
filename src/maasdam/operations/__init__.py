"""The only wiring: doors call nothing else, so they cannot drift."""
