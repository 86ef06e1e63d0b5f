"""Wire formats ⇄ spans, as pure functions: no I/O, no store."""
