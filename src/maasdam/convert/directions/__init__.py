"""One file a direction: what turns an artifact of one format into another, unproven; and what they share of writing files."""
