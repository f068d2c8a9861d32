"""Standard MCP, over HTTP and over standard input: the same six tools, and `begin_episode`.

What may enter: what the MCP SDK has parsed; the rules that it shows are made from what enforces
them.
"""
