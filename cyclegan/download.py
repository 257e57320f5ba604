"""The data sets of the paper, from their authors' servers."""

import logging
import shutil
import zipfile
from pathlib import Path

from cyclegan.errors import UserError
from cyclegan.files import writing
from cyclegan.progress import progress

MIRRORS = (
    "http://efrosgans.eecs.berkeley.edu/cyclegan/datasets",
    "https://people.eecs.berkeley.edu/~taesung_park/CycleGAN/datasets",
)
ARCHIVES = {  # SHA-256, as TensorFlow Datasets has recorded them
    "apple2orange": "845a191e9af8926408ea597001cd03a452e3300a1f44a79fe329b3d59f6e3eb8",
    "cezanne2photo": "3a6c10ca21f9485862f1cbd707744b9dc258954a04631271d23a3605eeb63cff",
    "facades": "9a31ebf3a31b9b5cd195dd5bf62e9308e00cb94604d1019e3889ac84248695c0",
    "horse2zebra": "a74d9d392eecca9966b51287a76ca126af473d9de4f3e8fc0e9cda08fa1730a1",
    "iphone2dslr_flower": "8fcb5e374d631b107e1d961b8c4cd0a186aa2a4ff3e279923f4c426128de7113",
    "maps": "639534f69dbf9f36bef8d6292a7698006361221f83f0285d7c9ca78afe6e8a9e",
    "monet2photo": "88f91b00fc228f97c9411fbf1880ec1d119c98f1722e4cfcfaa2fb35fac05b04",
    "summer2winter_yosemite": "167fe1726807a9d22bd106b4a6c0bd7953b688af924ac1bf967439c4961e49f9",
    "ukiyoe2photo": "02a2a2fb5ecf425ca1bf86aca7304377da64a2a1d3b86df54eb65e4068bf3b08",
    "vangogh2photo": "362c3473e70be0944bda08d49d660eafdc2854df55d697835b8186d1d79caaff",
}
FOLDERS = ("trainA", "trainB", "testA", "testB")
TIMEOUT = 30  # seconds without a byte


def download(
    name: str,
    root: Path,
    mirrors: tuple[str, ...] = MIRRORS,
    archives: dict[str, str] = ARCHIVES,
) -> Path:
    """Get, check and unpack a data set; returns root/NAME with trainA, trainB, testA, testB.

    An archive root/NAME.zip that is there already is checked, unpacked and kept.

    Args:
        name: one of ARCHIVES.
        mirrors: folders on servers that hold NAME.zip, tried in this order.
        archives: SHA-256 by name.

    Raises:
        UserError: an unknown name; no mirror has it; another file than expected.
    """
    import pooch  # here: training does not need it

    if name not in archives:
        raise UserError(f"data set must be one of {', '.join(archives)}; got {name!r}")
    target, archive = root / name, root / f"{name}.zip"
    if target.exists():
        raise FileExistsError(f"{target} exists")
    there_already = archive.exists()
    if not there_already:
        _fetch(archive, mirrors, archives[name])
    elif pooch.file_hash(str(archive)) != archives[name]:
        raise UserError(f"{archive} is not the expected file; remove it and try again")
    _unpack(archive, target)
    if not there_already:
        archive.unlink()
    return target


def _fetch(archive: Path, mirrors: tuple[str, ...], sha256: str) -> None:
    """Download `archive`: whole and with the expected sum, or not at all."""
    import pooch
    from requests import RequestException

    pooch.get_logger().setLevel(logging.WARNING)
    errors = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{archive.name}"
        bar = progress(archive.stem, "B", 1, unit_scale=True)  # pooch corrects the total
        get = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 18, timeout=TIMEOUT)
        try:
            with writing(archive):
                try:
                    pooch.retrieve(url, sha256, archive.name, archive.parent, downloader=get)
                    return
                except (RequestException, ValueError) as error:  # ValueError: another sum
                    errors.append(f"{url}: {error}")
        finally:
            bar.close()
    raise UserError(
        f"no mirror has {archive.stem}: {'; '.join(errors)}. Fetch it in another way and save it "
        f"as {archive}; the same command then unpacks it"
    )


def _unpack(archive: Path, target: Path) -> None:
    """Into a folder beside `target`, then renamed: `target` is there as a whole or not at all."""
    temporary = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as bundle:
            with writing(target, sum(member.file_size for member in bundle.infolist())):
                bundle.extractall(temporary)
        # Archives hold one folder of the data set's name.
        inner = [path for path in temporary.iterdir() if path.name != "__MACOSX"]
        root = inner[0] if len(inner) == 1 else temporary
        missing = [name for name in FOLDERS if not (root / name).is_dir()]
        if missing:
            raise UserError(f"{archive} holds no {', '.join(missing)}")
        root.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
