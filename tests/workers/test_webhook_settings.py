from __future__ import annotations

import pytest

from taskflow import RateLimit
from taskflow.errors import ConfigError
from workers.webhook.settings import read_rate, read_settings

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_only_the_secret_is_needed():
    settings = read_settings({"WEBHOOK_SECRET": SECRET})

    assert (settings.allow_private, settings.connect_timeout_s, settings.timeout_s) == (False, 5.0, 30.0)


def test_environment_is_read():
    settings = read_settings(
        {
            "WEBHOOK_SECRET": SECRET,
            "WEBHOOK_ALLOW_PRIVATE": "true",
            "WEBHOOK_CONNECT_TIMEOUT_S": "0.5",
            "WEBHOOK_TIMEOUT_S": "10",
        }
    )

    assert (settings.allow_private, settings.connect_timeout_s, settings.timeout_s) == (True, 0.5, 10.0)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WEBHOOK_SECRET", "hunter2"),
        ("WEBHOOK_ALLOW_PRIVATE", "maybe"),
        ("WEBHOOK_TIMEOUT_S", "soon"),
        ("WEBHOOK_TIMEOUT_S", "0"),
        ("WEBHOOK_TIMEOUT_S", "301"),
        ("WEBHOOK_TIMEOUT_S", "nan"),
        ("WEBHOOK_CONNECT_TIMEOUT_S", "-1"),
    ],
)
def test_invalid_value_is_a_config_error_that_names_the_variable(variable: str, value: str):
    with pytest.raises(ConfigError, match=f"^{variable}"):
        read_settings({"WEBHOOK_SECRET": SECRET, variable: value})


def test_keys_are_not_in_the_representation():
    assert "keys" not in repr(read_settings({"WEBHOOK_SECRET": SECRET}))


def test_rate_is_for_each_host_and_only_if_set():
    assert read_rate({}) is None
    assert read_rate({"WEBHOOK_RATE": "100/m"}) == RateLimit("http", "100/m", per_lane=True)


def test_invalid_rate_is_a_config_error_that_names_the_variable():
    with pytest.raises(ConfigError, match=r"^WEBHOOK_RATE.*'fast'"):
        read_rate({"WEBHOOK_RATE": "fast"})
