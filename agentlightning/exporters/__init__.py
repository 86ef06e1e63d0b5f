"""Training rows in the shapes that trainers take; each module is one trainer, and imports it only when it is used.

Every exporter is a thin change of shape over ``build_rows``. ``TESTED_WITH`` of each module names the versions of the
trainer that its tests ran against. ``otlp`` is none of them: it sends spans to whoever takes OpenTelemetry's.
"""
