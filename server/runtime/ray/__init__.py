"""Many machines: the pool's workers as Ray's actors, one a core, wherever a node is of our engine.

Guarantees: no bit and no record depends on where it was computed. Actors, nodes, the head and the
process that speaks to Ray may end at any time: what they were doing is done again. Only that
process and the actors import Ray; the server does not.
"""
