"""The page: whoever looks sees what an agent would, and plays by the same tools and rules.

What may enter: visitors, each with an episode in one of the server's places, and recorded episodes.
"""
