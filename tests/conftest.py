import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # fast on busy cores, and sums are equal in every process
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # by the host's name would ask a resolver

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
