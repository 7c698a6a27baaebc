"""What runs on the edge: the tail, and the server that answers devices with it."""
