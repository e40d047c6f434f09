"""A local stand-in for MXO: checks what the API reference demands, remembers what it applied, misbehaves on request.

Written from the API reference alone. Imports nothing else of this package, so that a mistake in the client
cannot hide in its own test partner.
"""
