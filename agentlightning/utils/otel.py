"""0.3's import path of the attribute functions and of the tracer that emitters fall back to."""

from __future__ import annotations

from .. import _lazy

# 0.3 has both kinds in one module: functions on attributes, which are pure, and two that reach for a provider.
__getattr__, __dir__, __all__ = _lazy.attach(
    "agentlightning.utils.otel",
    {
        "agentlightning.codec.attributes": (
            "check_attributes_sanity",
            "extract_links_from_attributes",
            "extract_tags_from_attributes",
            "filter_and_unflatten_attributes",
            "filter_attributes",
            "flatten_attributes",
            "format_exception_attributes",
            "full_qualified_name",
            "make_link_attributes",
            "make_tag_attributes",
            "query_linked_spans",
            "sanitize_attribute_value",
            "sanitize_attributes",
            "sanitize_list_attribute_sanity",
            "unflatten_attributes",
        ),
        "agentlightning.emitter.provider": ("get_tracer", "get_tracer_provider"),
    },
)
