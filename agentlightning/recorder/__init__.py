"""What happens to a span between its start and its commit."""
