"""What the tests of checkpoints share."""

import pytest

from tests.helpers.fake_hub import make_weights


@pytest.fixture(scope="session")
def weights():
    """Weights of timm's resnet18, from a seed."""
    return make_weights("resnet18")
