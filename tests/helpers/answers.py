"""Answers that nobody promised: JSON of any shape, and what looks like a completion."""

from __future__ import annotations

from hypothesis import strategies as st

TOOLS = ("configure_training", "run_epochs", "submit_model")
TEXT = '{"num_epochs": 5}'

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=9)
    | st.sampled_from(
        [
            *(*TOOLS, TEXT, "function", "tool_use", "text", "length", "error", "429", "<think>"),
            *('{"name": "submit_model", "arguments": {}}', "```", "\ud800", "[DONE]", "{"),
        ]
    )
)
KEYS = """
choices message delta content tool_calls function_call function name arguments parameters input type
text index finish_reason refusal error errors code status detail metadata raw headers retryDelay
failed_generation custom num_epochs
"""
keys = st.sampled_from(KEYS.split()) | st.text(max_size=3)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
completions = st.builds(
    lambda parts, finish, rest: {
        "choices": [{"message": parts, "finish_reason": finish}],
        **rest,
    },
    st.dictionaries(keys, anything, max_size=4) | anything,
    leaves,
    st.dictionaries(keys, anything, max_size=1),
)
