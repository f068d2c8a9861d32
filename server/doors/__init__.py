"""Who may come in, and in which protocol: every door gives the same answers, and a refusal says
why.

What may enter: requests from anywhere, and one environment for each session; no engine.
"""
