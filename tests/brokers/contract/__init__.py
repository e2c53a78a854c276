"""The contract of `taskflow.brokers.base` over every broker: a file for each promise.

Brokers with a server or a file have a real clock, so nothing here sleeps for a guess: tests poll with a deadline.
"""
