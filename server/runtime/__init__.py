"""Where training runs and what is kept of it: which runner, which process and which memory never
changes a bit.

What may enter: runs and plans of any caller; no task, no reward, no protocol.
"""
