"""What runs on the device: a head, the runtime under it, and the remote that calls the edge. Needs no torch."""
