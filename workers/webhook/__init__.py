"""The parts of `workers.http`: signature, settings, public addresses, `Retry-After`, and the sender that joins them."""
