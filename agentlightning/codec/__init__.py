"""Spans ⇄ rows, OTLP and attributes, as pure functions: no I/O, no store."""
