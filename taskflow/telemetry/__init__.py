"""Listeners: events in; logs, metrics, health out. A listener that raises never hurts a job."""
