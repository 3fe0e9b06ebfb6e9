import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--gpu", default="cuda", help="the GPU that tests use: cuda, cuda:1, ...")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def gpu(request):
    """The GPU to use, in torch's words."""
    return request.config.getoption("--gpu")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param if request.param == "cpu" else request.config.getoption("--gpu")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)
