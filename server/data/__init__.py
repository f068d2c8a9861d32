"""Where the data sets come from: the canonical subsets, bit for bit, or a refusal that says
why.

What may enter: bytes of the official files or of package registries, and a folder to keep them
in; no torch, no task, no session.
"""
