import sys
from pathlib import Path

import pytest
import torch

DATA = Path(__file__).parents[1] / "data"
sys.path.insert(0, str(DATA))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def reference_state():
    from clip_recipe import reference_state_dict

    return reference_state_dict()


@pytest.fixture(scope="session")
def reference_file(reference_state, tmp_path_factory):
    """The reference checkpoint as a state dict file."""
    path = tmp_path_factory.mktemp("clip") / "reference.pt"
    torch.save(reference_state, path)
    return str(path)
