import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def reference_file(tmp_path_factory):
    """The checkpoint of the reference arrays, as a state dict file."""
    from clip_recipe import reference_state_dict

    path = tmp_path_factory.mktemp("clip") / "reference.pt"
    torch.save(reference_state_dict(), path)
    return str(path)
