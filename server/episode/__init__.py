"""One game: an action happens wholly or not at all, is paid once, and the grade depends on the
epochs alone.

What may enter: checked arguments and a runner; no torch, no protocol, no clock that an agent
could see.
"""
