"""Downloads, from a server of our own."""

import hashlib
import io
import shutil
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cyclegan_runs import largest_file

from cyclegan.download import ARCHIVES, FOLDERS, MIRRORS, download
from cyclegan.errors import UserError

NAME = "dots2lines"


def archive(names=None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name in names or [f"{NAME}/{folder}/{i}.png" for folder in FOLDERS for i in range(3)]:
            bundle.writestr(name, f"image {name}" * 50)
    return buffer.getvalue()


def known(content: bytes) -> dict[str, str]:
    return {NAME: hashlib.sha256(content).hexdigest()}


class Server:
    """Serves `content` as NAME.zip, or refuses; or cuts it in the middle."""

    def __init__(self, content: bytes, cut: bool = False, status: int = 200):
        self.requests = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests += 1
                if status != 200 or self.path != f"/data/{NAME}.zip":
                    return self.send_error(404 if status == 200 else status)
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.mirror = f"http://127.0.0.1:{self.http.server_port}/data"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


def assert_whole(root):
    assert [path.name for path in root.iterdir()] == [NAME]  # and no archive, no part
    assert sorted(path.name for path in (root / NAME).iterdir()) == sorted(FOLDERS)
    assert (root / NAME / "testB" / "2.png").read_text().startswith("image")


def test_a_data_set_is_fetched_checked_and_unpacked(tmp_path, capfd):
    content = archive()
    with Server(content) as server:
        found = download(NAME, tmp_path / "data", (server.mirror,), known(content))
    assert found == tmp_path / "data" / NAME
    assert_whole(tmp_path / "data")
    assert server.requests == 1
    printed = capfd.readouterr().err.splitlines()
    assert printed[-1].startswith(f"{NAME}: 18.") and all(f"{NAME}: " in line for line in printed)
    with pytest.raises(FileExistsError, match=NAME):
        download(NAME, tmp_path / "data", (), known(content))


def test_the_next_mirror_is_asked_where_one_fails_lies_or_stops(tmp_path):
    content = archive()
    with (
        Server(content, status=503) as down,
        Server(b"<html>sorry</html>") as liar,
        Server(content, cut=True) as short,
        Server(content) as good,
    ):
        servers = (down, liar, short, good)
        download(NAME, tmp_path, tuple(one.mirror for one in servers), known(content))
    assert [one.requests for one in servers] == [1] * 4
    assert_whole(tmp_path)


def test_no_mirror_at_all_is_one_message_with_every_reason_and_what_to_do(tmp_path):
    content = archive()
    with Server(content, status=503) as down, Server(b"another file") as liar:
        mirrors = (down.mirror, liar.mirror, "http://127.0.0.1:9/data")
        with pytest.raises(UserError, match="503.*; .*SHA256 hash.*; .*refused") as raised:
            download(NAME, tmp_path, mirrors, known(content))
    assert f"save it as {tmp_path / NAME}.zip; the same command" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_an_archive_without_the_folders_leaves_nothing_but_itself(tmp_path):
    content = archive([f"{NAME}/trainA/0.png", f"{NAME}/../../evil.png"])
    root = tmp_path / "data"
    with Server(content) as server:
        with pytest.raises(UserError, match="holds no trainB, testA, testB"):
            download(NAME, root, (server.mirror,), known(content))
    assert [path.name for path in root.iterdir()] == [f"{NAME}.zip"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_folders_without_one_around_them_are_taken_too(tmp_path):
    content = archive([f"{folder}/x.png" for folder in FOLDERS] + ["__MACOSX/x"])
    with Server(content) as server:
        download(NAME, tmp_path, (server.mirror,), known(content))
    assert (tmp_path / NAME / "trainA" / "x.png").exists()


def test_an_archive_that_is_there_is_checked_and_kept(tmp_path):
    content = archive()
    mine = tmp_path / f"{NAME}.zip"
    mine.write_bytes(content)
    download(NAME, tmp_path, (), known(content))
    assert (tmp_path / NAME / "trainA").is_dir() and mine.read_bytes() == content
    shutil.rmtree(tmp_path / NAME)
    with pytest.raises(ValueError, match="is not the expected file"):
        download(NAME, tmp_path, (), {NAME: "0" * 64})
    assert mine.read_bytes() == content


def test_servers_that_speak_no_http_are_passed_over(tmp_path):
    content = archive()
    with socket.create_server(("127.0.0.1", 0)) as listener, Server(content) as good:

        def mumble():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"mumble\r\n\r\n")

        thread = threading.Thread(target=mumble)
        thread.start()
        mirrors = (f"http://127.0.0.1:{listener.getsockname()[1]}/data", good.mirror)
        download(NAME, tmp_path, mirrors, known(content))
        thread.join()
    assert_whole(tmp_path)


def test_a_full_disk_ends_a_download_and_names_the_file(tmp_path):
    """It is no fault of the mirror: the next one is not asked."""
    content = archive()
    with Server(content) as first, Server(content) as second:
        mirrors = (first.mirror, second.mirror)
        with largest_file(5000), pytest.raises(UserError) as raised:
            download(NAME, tmp_path, mirrors, known(content))
    assert str(raised.value) == f"cannot write {tmp_path / NAME}.zip: File too large"
    assert (first.requests, second.requests) == (1, 0)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_unpacking_leaves_the_archive(tmp_path):
    content = archive()
    mine = tmp_path / f"{NAME}.zip"
    mine.write_bytes(content)
    with largest_file(100), pytest.raises(UserError) as raised:
        download(NAME, tmp_path, (), known(content))
    assert str(raised.value) == f"cannot write {tmp_path / NAME} (0.1 MB): File too large"
    assert list(tmp_path.iterdir()) == [mine]


def test_unknown_data_sets_are_named_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="must be one of apple2orange, .*; got 'cats'"):
        download("cats", tmp_path)


def test_the_list_of_archives_is_whole():
    assert {"horse2zebra", "monet2photo", "maps"} <= ARCHIVES.keys()
    assert all(len(bytes.fromhex(digest)) == 32 for digest in ARCHIVES.values())
    assert all(mirror.startswith("http") for mirror in MIRRORS)
