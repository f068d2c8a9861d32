"""A cluster trains while somebody watches: `ml-trainer cluster`.

What is shown is what an agent would be told, and beside it what only a visitor may know: which
faults are there, and which process plays which host.
"""
