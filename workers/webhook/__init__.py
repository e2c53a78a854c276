"""The parts of `workers.http`: signature, settings, public addresses, and the sender that joins them."""
