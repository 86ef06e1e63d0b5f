"""What belongs to one foreign library alone, a package each."""
