"""Old import paths of Agent Lightning 0.3: leaves that nobody inside imports."""
