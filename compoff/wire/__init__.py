"""Between device and edge: frames, the two ends' state machines, the clients.

Everything here moves bytes. What a payload or a reply means is for ``compoff.coding`` and ``compoff.edge``.
Start with ``frames`` (the bytes), then ``protocol`` (the rules), then ``client`` (the sockets).
"""
