"""What workers need of the driver's environment reaches them by a list; the rest, and what a node has set, does not."""

from __future__ import annotations

import pytest

from cardialign.cluster.environment.handed_on import adopt, handed_on

NEEDED = {
    "HF_HOME": "/data/hf",
    "HF_ENDPOINT": "https://mirror",
    "HF_HUB_OFFLINE": "1",
    "HTTPS_PROXY": "http://proxy:3128",
    "https_proxy": "http://proxy:3128",
    "no_proxy": "10.0.0.0/8",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_SOCKET_IFNAME": "eth1",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "GLOO_SOCKET_IFNAME": "eth1",
    "CARDIALIGN_CACHE": "/data/cache",
}
OTHERS = {
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_PROFILE": "ecg",
    "GOOGLE_APPLICATION_CREDENTIALS": "/home/me/key.json",
    "MLFLOW_TRACKING_PASSWORD": "secret",
    "SSL_CERT_FILE": "/home/me/ca.pem",  # a file of the driver's host
    "PATH": "/usr/bin",
    "HOME": "/home/me",
    "LD_PRELOAD": "x.so",
}


def test_the_list_is_handed_on_and_nothing_else() -> None:
    assert handed_on({**NEEDED, **OTHERS}) == NEEDED


@pytest.mark.parametrize("allowed", ["AWS_* GOOGLE_*", "AWS_*,GOOGLE_*", " AWS_*, GOOGLE_APPLICATION_CREDENTIALS"])
def test_credentials_are_handed_on_where_the_user_allows_them(allowed: str) -> None:
    values = handed_on({**NEEDED, **OTHERS, "CARDIALIGN_PASS_ENV": allowed})
    assert values.keys() - NEEDED.keys() == {"AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"}


def test_what_the_node_has_set_is_left_as_it_is() -> None:
    node = {"GLOO_SOCKET_IFNAME": "ib0", "HF_HOME": "", "http_proxy": "http://of-the-node"}
    driver = {"GLOO_SOCKET_IFNAME": "eth1", "HF_HOME": "/data", "HTTP_PROXY": "http://x", "HTTPS_PROXY": "http://y"}
    adopt(driver, node)
    assert node == {
        "GLOO_SOCKET_IFNAME": "ib0", "HF_HOME": "", "http_proxy": "http://of-the-node", "HTTPS_PROXY": "http://y",
    }  # fmt: skip


def test_both_cases_of_a_proxy_arrive_where_the_node_has_none() -> None:
    node: dict[str, str] = {}
    adopt({"HTTPS_PROXY": "http://x", "https_proxy": "http://x"}, node)
    assert node == {"HTTPS_PROXY": "http://x", "https_proxy": "http://x"}


def test_values_are_in_no_text_about_a_group() -> None:
    from cardialign.cluster.runs.group import GroupConfig

    config = GroupConfig(backend="gloo", run_dir="/run", environment={"AWS_SECRET_ACCESS_KEY": "hunter2"})
    assert "hunter2" not in repr(config) and "hunter2" not in str(config.to_dict())
