import pytest

from toolkit.contracts import Network
from toolkit.networks.registry import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_type_loads(name: str) -> None:
    assert issubclass(NETWORKS.load(name), Network)
