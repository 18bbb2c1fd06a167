"""Secrets are found wherever they stand, and what only looks a little like one is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.publish.redact import PATTERNS, redact, secrets_in

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "Hugging Face token": "hf_" + "aB3" * 11,
    "GitHub token": "ghp_" + "aB3" * 12,
    "API key": "sk-" + "proj-" + "aB3" * 10,
    "AWS access key": "AKIA" + "ABCD2345" * 2,
    "AWS secret key": "aws_secret_access_key = " + "aB3/" * 10,
    "Google API key": "AIza" + "aB3cd" * 7,
    "GitLab token": "glpat-" + "aB3" * 7,
    "Slack token": "xoxb-" + "1234567890-abc",
    "private key": "-----BEGIN " + "PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----",
    "address with a password": "https://jane:" + "hunter2@example.com/data.jsonl",
}
PLAIN = [
    "the task-specific-adapter-for-2024-data-sets",
    "risk-adjusted-returns-over-10-years-of-data",
    "https://huggingface.co/org/model",
    "git@github.com:org/model",
    "jane@example.com and joe@example.com",
    "hf_hub_download",
    "a" * 64,
    "d5a1b2c3" * 8,
    "hub:org/set@" + "c" * 40 + ":train",
    "sk-learn",
]


def test_every_pattern_has_an_example() -> None:
    assert SECRETS.keys() == PATTERNS.keys()


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("around", ["{}", "see `{}`, or", '{{"token": "{}"}}', "key={}\n", "({})"])
def test_secrets_are_found_and_taken_out(kind: str, around: str) -> None:
    text = "first line\n" + around.format(SECRETS[kind])
    assert (2, kind) in list(secrets_in(text))
    clean = redact(text)
    assert "removed]" in clean
    assert list(secrets_in(clean)) == []
    assert "hunter2" not in clean


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


@given(st.text(max_size=300))
def test_redacting_twice_changes_nothing(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@given(st.text(alphabet=" \n.,;", max_size=20), st.sampled_from(sorted(SECRETS)))
def test_no_secret_survives_wherever_it_stands(around: str, kind: str) -> None:
    assert SECRETS[kind] not in redact(f"{around}{SECRETS[kind]}{around}")
