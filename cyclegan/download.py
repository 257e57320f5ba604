"""The data sets of the paper, from their authors' servers."""

import http.client
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cyclegan.errors import UserError
from cyclegan.files import fingerprint, writing
from cyclegan.progress import progress

MIRRORS = (
    "http://efrosgans.eecs.berkeley.edu/cyclegan/datasets",
    "https://people.eecs.berkeley.edu/~taesung_park/CycleGAN/datasets",
)
# Archives: size in bytes and SHA-256, as TensorFlow Datasets has recorded them.
_TABLE = """
apple2orange              78456409  845a191e9af8926408ea597001cd03a452e3300a1f44a79fe329b3d59f6e3eb8
cezanne2photo            279885071  3a6c10ca21f9485862f1cbd707744b9dc258954a04631271d23a3605eeb63cff
facades                   35135868  9a31ebf3a31b9b5cd195dd5bf62e9308e00cb94604d1019e3889ac84248695c0
horse2zebra              116867962  a74d9d392eecca9966b51287a76ca126af473d9de4f3e8fc0e9cda08fa1730a1
iphone2dslr_flower       339964458  8fcb5e374d631b107e1d961b8c4cd0a186aa2a4ff3e279923f4c426128de7113
maps                    1476754427  639534f69dbf9f36bef8d6292a7698006361221f83f0285d7c9ca78afe6e8a9e
monet2photo              305231073  88f91b00fc228f97c9411fbf1880ec1d119c98f1722e4cfcfaa2fb35fac05b04
summer2winter_yosemite   132640856  167fe1726807a9d22bd106b4a6c0bd7953b688af924ac1bf967439c4961e49f9
ukiyoe2photo             292946532  02a2a2fb5ecf425ca1bf86aca7304377da64a2a1d3b86df54eb65e4068bf3b08
vangogh2photo            306590349  362c3473e70be0944bda08d49d660eafdc2854df55d697835b8186d1d79caaff
"""
ARCHIVES = {
    name: (int(size), digest) for name, size, digest in map(str.split, _TABLE.strip().splitlines())
}
FOLDERS = ("trainA", "trainB", "testA", "testB")
TIMEOUT = 30  # seconds without a byte


def download(
    name: str,
    root: Path,
    mirrors: tuple[str, ...] = MIRRORS,
    archives: dict[str, tuple[int, str] | None] = ARCHIVES,
) -> Path:
    """Get, check and unpack a data set; returns root/NAME with trainA, trainB, testA, testB.

    A download that was cut short goes on where it stopped. The archive is removed
    once unpacked; if that fails it stays, for the next call and after.

    Args:
        name: one of ARCHIVES.
        mirrors: folders on servers that hold NAME.zip, tried in this order.
        archives: names, and size and SHA-256 of their files where these are known.

    Raises:
        UserError: an unknown name; no mirror has it; another file than expected; an archive whose
            names lead out of its folder.
    """
    if name not in archives:
        raise UserError(f"data set must be one of {', '.join(archives)}; got {name!r}")
    target = root / name
    if target.exists():
        raise FileExistsError(f"{target} exists")
    root.mkdir(parents=True, exist_ok=True)
    archive = root / f"{name}.zip"
    there_already = archive.exists()
    if not there_already:
        _fetch(name, archive, mirrors, archives[name])
    elif not _is_known(archive, archives[name]):
        raise UserError(f"{archive} is not the expected file; remove it and try again")
    _unpack(archive, target)
    if not there_already:
        archive.unlink()
    return target


def _fetch(name: str, archive: Path, mirrors: tuple[str, ...], known: tuple[int, str] | None):
    partial = archive.with_name(f"{archive.name}.part")
    errors = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{name}.zip"
        # What is there already may be of another file: then once more from the beginning.
        for _ in range(2 if partial.exists() else 1):
            try:
                _transfer(url, partial, name, known)
            except (OSError, http.client.HTTPException) as error:  # what has come is kept
                errors.append(f"{url}: {error}")
                break
            if _is_known(partial, known):
                partial.replace(archive)
                return
            size = partial.stat().st_size
            errors.append(f"{url}: {size} bytes that are not the expected ones")
            partial.unlink()
    raise UserError(
        f"no mirror has {name}: {'; '.join(errors)}. Fetch it in another way and save it as "
        f"{archive}; the same command then unpacks it"
    )


def _is_known(path: Path, known: tuple[int, str] | None) -> bool:
    return known is None or tuple(fingerprint(path).values()) == known


def _transfer(url: str, partial: Path, name: str, known: tuple[int, str] | None) -> None:
    """Append what is missing of `url` to `partial`."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or the sum will tell
            error.close()
            return
        raise
    with response:
        if response.status != 206:  # the server starts from the beginning
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if known and total is not None and total != known[0]:  # a page that says sorry, for example
            raise OSError(f"{total} bytes where {known[0]} are expected")
        missing = 0 if total is None else total - have
        bar = progress(name, "B", total, have, unit_scale=True)
        with bar, writing(partial, missing), partial.open("ab" if have else "wb") as file:
            for block in _blocks(response):
                file.write(block)
                bar.update(len(block))
            have = file.tell()
        if total is not None and have != total:
            raise OSError(f"the connection ended after {have} of {total} bytes")


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while block := response.read(1 << 18):
            yield block
    except OSError as error:  # not one of the file that the blocks go to
        raise http.client.HTTPException(str(error)) from error


def _unpack(archive: Path, target: Path) -> None:
    """Into a folder beside `target`, then renamed: `target` is there as a whole or not at all."""
    temporary = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as bundle:
            for member in bundle.infolist():
                _check_inside(member)
            with writing(target, sum(member.file_size for member in bundle.infolist())):
                bundle.extractall(temporary)
        # Archives hold one folder of the data set's name.
        inner = [path for path in temporary.iterdir() if path.name != "__MACOSX"]
        root = inner[0] if len(inner) == 1 else temporary
        missing = [name for name in FOLDERS if not (root / name).is_dir()]
        if missing:
            raise UserError(f"{archive} holds no {', '.join(missing)}")
        root.replace(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive} is no zip file ({error}); remove it and try again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_inside(member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    leads_out = path.is_absolute() or ".." in path.parts or ":" in member.filename
    if leads_out or stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"the archive would write outside its folder: {member.filename!r}")
