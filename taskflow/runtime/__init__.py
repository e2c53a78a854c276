"""The one walk of a job through a worker: claim, attempt, outcome, decision, settle. Asks the core, obeys it."""
