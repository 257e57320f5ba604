"""Downloads, from a server of our own."""

import hashlib
import io
import shutil
import socket
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cyclegan_runs import largest_file

from cyclegan.download import ARCHIVES, FOLDERS, MIRRORS, download
from cyclegan.errors import UserError

NAME = "dots2lines"


def archive(names=None, link: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name in names or [f"{NAME}/{folder}/{i}.png" for folder in FOLDERS for i in range(3)]:
            bundle.writestr(name, f"image {name}" * 50)
        if link:
            member = zipfile.ZipInfo(link)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            bundle.writestr(member, "/etc")
    return buffer.getvalue()


def known(content: bytes) -> tuple[int, str]:
    return len(content), hashlib.sha256(content).hexdigest()


class Server:
    """Serves `content` as NAME.zip, or refuses; cuts the first `cuts` answers in the middle."""

    def __init__(self, content: bytes, ranges: bool = True, cuts: int = 0, status: int = 200):
        self.requests: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                server.requests.append(wanted)
                if status != 200 or self.path != f"/data/{NAME}.zip":
                    return self.send_error(404 if status == 200 else status)
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and ranges else 0
                if start >= len(content):
                    return self.send_error(416)
                body = content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                cut = len(server.requests) <= cuts
                self.wfile.write(body[: len(body) // 2] if cut else body)

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


@pytest.mark.parametrize("sum_known", [True, False])
def test_a_data_set_is_fetched_checked_and_unpacked(tmp_path, sum_known):
    content = archive()
    sums = {NAME: known(content) if sum_known else None}
    with Server(content) as server:
        found = download(NAME, tmp_path / "data", (server.mirror,), sums)
    assert found == tmp_path / "data" / NAME
    assert_whole(tmp_path / "data")
    assert server.requests == [None]
    with pytest.raises(FileExistsError, match=NAME):
        download(NAME, tmp_path / "data", (), sums)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_cut_short_goes_on(tmp_path, ranges):
    content = archive()
    sums = {NAME: known(content)}
    half = len(content) // 2
    with Server(content, ranges, cuts=1) as server:
        with pytest.raises(ValueError, match=f"no mirror has {NAME}: .* after {half} of"):
            download(NAME, tmp_path, (server.mirror,), sums)
        assert (tmp_path / f"{NAME}.zip.part").stat().st_size == half
        download(NAME, tmp_path, (server.mirror,), sums)
    assert server.requests == [None, f"bytes={half}-"]
    assert_whole(tmp_path)


def test_a_download_that_was_complete_is_only_checked(tmp_path):
    content = archive()
    (tmp_path / f"{NAME}.zip.part").write_bytes(content)
    with Server(content) as server:
        download(NAME, tmp_path, (server.mirror,), {NAME: known(content)})
    assert server.requests == [f"bytes={len(content)}-"]
    assert_whole(tmp_path)


def test_the_next_mirror_is_asked_where_one_fails_or_lies(tmp_path):
    content = archive()
    lie = b"x" * len(content)
    with Server(content, status=503) as down, Server(lie) as liar, Server(content) as good:
        mirrors = (down.mirror, liar.mirror, good.mirror)
        download(NAME, tmp_path, mirrors, {NAME: known(content)})
    assert [len(server.requests) for server in (down, liar, good)] == [1, 1, 1]
    assert good.requests == [None]  # nothing of the lie is kept
    assert_whole(tmp_path)


def test_no_mirror_at_all_is_one_message_with_every_reason(tmp_path):
    content = archive()
    with Server(content, status=503) as down, Server(b"another file") as liar:
        mirrors = (down.mirror, liar.mirror)
        with pytest.raises(ValueError, match="503.*; .*12 bytes where .* are expected"):
            download(NAME, tmp_path, mirrors, {NAME: known(content)})
        with pytest.raises(ValueError, match=f"save it as {tmp_path / NAME}.zip; the same command"):
            download(NAME, tmp_path, mirrors, {NAME: known(content)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, message",
    [
        (archive(["../evil.png"]), "outside its folder: '../evil.png'"),
        (archive(["a/../../evil.png"]), "outside its folder"),
        (archive(["/tmp/evil.png"]), "outside its folder"),
        (archive(["..\\evil.png"]), "outside its folder"),
        (archive(["C:/evil.png"]), "outside its folder"),
        (archive(link=f"{NAME}/trainA/link"), "outside its folder: .*link"),
        (archive([f"{NAME}/trainA/0.png"]), "holds no trainB, testA, testB"),
        (b"<html>moved</html>", "is no zip file"),
    ],
)
def test_archives_that_are_not_what_they_should_be_leave_nothing(tmp_path, content, message):
    root = tmp_path / "data"
    with Server(content) as server, pytest.raises(ValueError, match=message):
        download(NAME, root, (server.mirror,), {NAME: None})
    assert [path.name for path in root.iterdir()] == [f"{NAME}.zip"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_folders_without_one_around_them_are_taken_too(tmp_path):
    content = archive([f"{folder}/x.png" for folder in FOLDERS] + ["__MACOSX/x"])
    with Server(content) as server:
        download(NAME, tmp_path, (server.mirror,), {NAME: None})
    assert (tmp_path / NAME / "trainA" / "x.png").exists()


def test_an_archive_that_is_there_is_checked_and_kept(tmp_path):
    content = archive()
    mine = tmp_path / f"{NAME}.zip"
    mine.write_bytes(content)
    download(NAME, tmp_path, (), {NAME: known(content)})
    assert (tmp_path / NAME / "trainA").is_dir() and mine.read_bytes() == content
    shutil.rmtree(tmp_path / NAME)
    with pytest.raises(ValueError, match="is not the expected file"):
        download(NAME, tmp_path, (), {NAME: (3, "")})
    assert mine.read_bytes() == content


def test_a_part_of_another_file_is_begun_again(tmp_path):
    content = archive()
    (tmp_path / f"{NAME}.zip.part").write_bytes(b"x" * 100)
    with Server(content) as server:
        download(NAME, tmp_path, (server.mirror,), {NAME: known(content)})
    assert server.requests == ["bytes=100-", None]
    assert_whole(tmp_path)


def test_a_page_in_the_place_of_the_file_costs_nothing_that_has_come(tmp_path):
    content = archive()
    part = tmp_path / f"{NAME}.zip.part"
    part.write_bytes(content[:100])
    with Server(b"<html>sorry</html>" * 9, ranges=False) as sorry:
        with pytest.raises(ValueError, match=f"162 bytes where {len(content)} are expected"):
            download(NAME, tmp_path, (sorry.mirror,), {NAME: known(content)})
    assert part.read_bytes() == content[:100]


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
        download(NAME, tmp_path, mirrors, {NAME: known(content)})
        thread.join()
    assert_whole(tmp_path)


def test_a_full_disk_ends_a_download_and_names_the_file(tmp_path):
    """It is no fault of the mirror: the next one is not asked."""
    content = archive()
    with Server(content) as first, Server(content) as second:
        mirrors = (first.mirror, second.mirror)
        with largest_file(5000), pytest.raises(UserError) as raised:
            download(NAME, tmp_path, mirrors, {NAME: known(content)})
    part = tmp_path / f"{NAME}.zip.part"
    assert str(raised.value) == f"cannot write {part} (0.1 MB): File too large"
    assert (first.requests, second.requests) == ([None], [])
    assert list(tmp_path.iterdir()) == [part]


def test_a_full_disk_while_unpacking_leaves_the_archive(tmp_path):
    content = archive()
    mine = tmp_path / f"{NAME}.zip"
    mine.write_bytes(content)
    with largest_file(100), pytest.raises(UserError) as raised:
        download(NAME, tmp_path, (), {NAME: known(content)})
    assert str(raised.value) == f"cannot write {tmp_path / NAME} (0.1 MB): File too large"
    assert list(tmp_path.iterdir()) == [mine]


def test_unknown_data_sets_are_named_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="must be one of apple2orange, .*; got 'cats'"):
        download("cats", tmp_path)


def test_the_list_of_archives_is_whole():
    assert {"horse2zebra", "monet2photo", "maps"} <= ARCHIVES.keys()
    assert all(size > 10**7 and len(digest) == 64 for size, digest in ARCHIVES.values())
    assert all(mirror.startswith("http") for mirror in MIRRORS)
