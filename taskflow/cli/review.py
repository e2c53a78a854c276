"""What is wrong, and what is suspicious, about the tasks of an app under its settings: the same for every command."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from taskflow.errors import ConfigError
from taskflow.settings.sharing import disagreements, made_by_overrides
from taskflow.settings.tuning import unknown_tasks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskflow.app import TaskFlow
    from taskflow.settings.tuning import TaskPolicy


class Review(NamedTuple):
    """Lines for people. `problems` keep a worker from starting, the others do not."""

    policies: dict[str, TaskPolicy]  # of the tasks whose policies are valid, by name
    problems: list[str]
    misspelt: list[str]  # overrides of unknown tasks; under TASKFLOW_STRICT_ENV=1 they are problems
    gates: list[str]  # where overrides make gates, or make tasks disagree about one

    @property
    def warnings(self) -> list[str]:
        """All that is merely suspicious."""
        return [*self.misspelt, *self.gates]


def review(flow: TaskFlow) -> Review:
    """Resolve the policies of every task of `flow`, and hold the overrides against them."""
    settings = flow.settings
    policies: dict[str, TaskPolicy] = {}
    problems: list[str] = []
    for name, task in sorted(flow.tasks.items()):
        try:
            policies[name] = task.definition.policy(settings)
            task.definition.check_found()
        except ConfigError as error:
            problems += str(error).splitlines()
    misspelt = [str(word) for word in unknown_tasks(settings, flow.tasks)]
    if settings.strict_env:
        problems, misspelt = misspelt + problems, []
    declared = {name: flow.tasks[name].declared for name in policies}
    gates = [*disagreements(settings, declared), *made_by_overrides(settings, declared)]
    return Review(policies, problems, misspelt, gates)


def unfed(flow: TaskFlow, found: Review, queues: Iterable[str]) -> list[str]:
    """Lines about what a worker of these queues waits for in vain: no tasks at all, queues that none goes to."""
    if not flow.tasks:
        return ["the app has no tasks: is the module that registers them imported?"]
    fed = {policy.queue for policy in found.policies.values()}
    return [
        f"queue {queue!r}: no task goes there by itself; they go to {', '.join(sorted(fed))}"
        for queue in queues
        if queue not in fed
    ]
