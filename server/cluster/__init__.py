"""A data-parallel training on several ranks, in which things go wrong.

What may enter: the engine below and plain values; no task, no session. The learning is real, only
seconds are virtual.
"""
