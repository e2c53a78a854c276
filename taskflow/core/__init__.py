"""The pure core: what a job is, what happened to it, what to do about it.

No await, no clock, no randomness, no logging, no third party in here: `now` and `jitter` are arguments. The state
machines return; the shell around them announces.
"""
