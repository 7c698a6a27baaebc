"""Other ways to ask a server a question, each with a server and a client of its own, for ``benchmarks/peers.py``.

Every server answers with as many zero bytes as the first four bytes of the question say. Every client is the library's
blocking one, kept open, set up as its documentation advises for small messages.
"""
