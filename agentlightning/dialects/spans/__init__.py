"""Model calls as attributes of spans: ours, those of Agent Lightning 0.3, and those of other instrumentations."""
