"""Ready-made workers to deploy. They use the public API of taskflow only, and are not part of the wheel."""
