"""The inside of one epoch: the same bits for the same numbers, whatever threads compute them.

What may enter: tensors, plans and generators; no task, no session, no setting of the process.
"""
