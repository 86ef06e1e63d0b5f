"""What a model call looks like on the wire and in spans, both ways, as pure functions: no I/O, no store."""
