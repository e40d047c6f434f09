"""A made-up world in virtual time that drives the very dispatch that `backfill run` drives, and holds it to account.

scenario → server, disk → history → account: what a seed draws, who answers, what happened, and whether it was right.
"""
