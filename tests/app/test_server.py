"""What the application answers, and to whom."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from ccsegformer.app import server
from ccsegformer.app.guard import BASEMAP
from ccsegformer.app.server import create_app
from ccsegformer.app.workspace import Workspace, opened_workspace
from ccsegformer.errors import CCSegformerError, DataError


def test_the_models_are_listed(client: TestClient) -> None:
    about = client.get("/api/about").json()
    assert [(model["key"], model["name"]) for model in about["models"]] == [(0, "first"), (1, "second")]
    assert about["models"][0]["classes"][1] == {"name": "water", "color": "#28323c"}
    assert about["models"][0]["attention"] == ["criss_cross"] * 4


def test_models_of_the_same_name_are_told_apart(model_folders: list[Path], tmp_path: Path) -> None:
    twin = tmp_path / "other" / "first"
    twin.parent.mkdir()
    twin.symlink_to(model_folders[0])
    with opened_workspace([model_folders[0], twin, twin]) as opened:
        assert [model.name for model in opened.models] == [str(model_folders[0]), str(twin)]


def test_a_missing_root_is_named(model_folders: list[Path], tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="nowhere: no such folder"),
        opened_workspace([], tmp_path / "nowhere"),
    ):
        pass


@pytest.mark.parametrize(
    "host",
    ["example.org", "example.org:8765", "127.0.0.1.example.org", "192.168.0.7", "[::1", "", "localhost.evil"],
)
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    refused = client.get("/api/about", headers={"Host": host})
    assert refused.status_code == 403 and "answers to 127.0.0.1" in refused.text


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "LOCALHOST:1", "[::1]:8765"])
def test_this_machine_is_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/about", headers={"Host": host}).status_code == 200


def test_behind_an_open_address_numbers_are_answered_and_names_are_not(workspace: Workspace) -> None:
    client = TestClient(
        create_app(workspace, ("127.0.0.1", "localhost", "0.0.0.0")), base_url="http://10.0.0.3"
    )
    assert client.get("/api/about").status_code == 200
    assert client.get("/api/about", headers={"Host": "rebound.example.org"}).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),  # no browser
        ({"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}, 201),
        ({"Origin": "http://example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_other_sites_change_nothing(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.post("/api/label/examples/0", headers=headers).status_code == status


def test_every_answer_locks_the_page(client: TestClient) -> None:
    for path in ("/", "/static/main.js", "/api/about", "/api/none"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"], path
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_the_page_names_no_other_site_than_the_basemap() -> None:
    text = "".join(
        path.read_text() for path in server.STATIC.rglob("*") if path.suffix in (".html", ".js", ".css")
    )
    sites = set(re.findall(r"""https?://[^/"'`\s]+|(?<=["'(])//[^/"'`\s]+""", text))
    assert sites <= {BASEMAP, "https://www.openstreetmap.org", "http://www.w3.org"}


def test_errors_are_one_line(client: TestClient, workspace: Workspace) -> None:
    for response, status in [
        (client.get("/api/jobs/7"), 404),
        (client.delete("/api/jobs/7"), 404),
        (client.post("/api/label/jobs", json={"image": "9", "models": [0]}), 422),
        (client.get("/api/label/jobs/1/0/files/map.tif"), 422),
    ]:
        assert response.status_code == status
        assert isinstance(detail := response.json()["detail"], str) and "\n" not in detail
    image = client.post("/api/label/examples/0").json()["key"]
    refused = client.post("/api/label/jobs", json={"image": image, "models": [2]})
    assert refused.json()["detail"] == "model 2: there are 2 models"


def test_an_address_in_use_is_named(workspace: Workspace) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CCSegformerError, match=rf"^127\.0\.0\.1:{port}: .* choose another --port$"):
            server.serve_app(workspace, "127.0.0.1", port, print)


def test_the_temporary_folder_is_removed(model_folders: list[Path]) -> None:
    with opened_workspace(model_folders[:1]) as opened:
        client = TestClient(create_app(opened), base_url="http://127.0.0.1")
        client.post("/api/label/examples/0")
        assert [path for path in opened.folder.rglob("*") if path.is_file()]
    assert not opened.folder.exists()
