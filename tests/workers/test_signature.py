from __future__ import annotations

import base64
import re

import pytest

from taskflow.errors import ConfigError
from workers.webhook.signature import parse_secrets, signature_headers

VECTOR = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # of the reference libraries of Standard Webhooks


def test_signature_is_that_of_the_reference_libraries():
    keys = parse_secrets(VECTOR, variable="WEBHOOK_SECRET")

    headers = signature_headers(
        keys, webhook_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=1614265330, body=b'{"test": 2432232314}'
    )

    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_each_secret_of_a_rotation_signs_newest_first():
    newer = "whsec_" + base64.b64encode(bytes(range(32))).decode()
    alone = [
        signature_headers(parse_secrets(text, variable="S"), webhook_id="a", timestamp=1, body=b"{}")
        for text in (newer, VECTOR)
    ]

    both = signature_headers(parse_secrets(f"{newer}  {VECTOR}", variable="S"), webhook_id="a", timestamp=1, body=b"{}")

    assert both["webhook-signature"].split() == [one["webhook-signature"] for one in alone]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not set"),
        ("   ", "is not set"),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "does not start with 'whsec_'"),
        ("whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "does not start with 'whsec_'"),
        ("whsec_", "has 0 bytes, not 24 to 64"),
        ("whsec_c2hvcnQ=", "has 5 bytes, not 24 to 64"),
        ("whsec_" + base64.b64encode(bytes(65)).decode(), "has 65 bytes, not 24 to 64"),
        ("whsec_MfKQ9r8GKYqr!wjUPD8ILPZIo2LaLaSw", "is not base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", "is not base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSü", "is not base64"),
        (f"{VECTOR} whsec_c2hvcnQ=", "secret 2 of 2 has 5 bytes"),
    ],
)
def test_malformed_secret_is_named_but_never_shown(text: str, problem: str):
    with pytest.raises(ConfigError, match=re.escape(problem)) as caught:
        parse_secrets(text, variable="WEBHOOK_SECRET")

    message = str(caught.value)
    assert message.startswith("WEBHOOK_SECRET")
    assert "openssl rand -base64 32" in message
    for secret in text.split():
        assert secret.removeprefix("whsec_")[:8] not in message or secret == "whsec_"
