import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")


@pytest.fixture
def warnings_of(caplog):
    """Messages that greedylr_integrations logged at WARNING or above."""

    def messages():
        return [r.getMessage() for r in caplog.records if r.name == "greedylr_integrations" and r.levelno >= 30]

    return messages


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
