"""What the process has of its machine: its socket alone, its cores as allowed, and a quick end.

What may enter: what the operating system says; nothing of the house.
"""
