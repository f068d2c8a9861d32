"""What belongs to one client from connecting to leaving: its place, its episode, the key that
opens it again.

What may enter: episodes, settings and whether a client is still there; no HTTP and no page.
"""
