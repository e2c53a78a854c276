"""What a worker serves on loopback: metrics and health."""
