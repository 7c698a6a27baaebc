"""Running a fleet: certificates, the server's configuration, its processes, and what can be seen of it.

Everything here is about the processes around ``compoff.edge``; it knows no payloads and no models.
"""
