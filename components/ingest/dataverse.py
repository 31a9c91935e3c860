"""A data set that a Dataverse publishes under a DOI, fetched once into the cache: resumable, and checked by its checksums.

Dataverse turns uploaded tables into .tab files of its own, yet the checksum it lists is that of the uploaded file: that
one is fetched (format=original). Test parts (`..._Test_...`) are left: they have no rows in the metadata.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from components.ingest.entries import IMAGE_ENDINGS, TABLE_ENDINGS
from dermaflow import places
from dermaflow.artifacts import read_json, write_json
from dermaflow.errors import InputError, shown
from dermaflow.params import DataParams
from dermaflow.progress import progress, tell

HAM10000_DOI = "10.7910/DVN/DBW86T"
_LISTING = "dataverse.json"
_DOI = re.compile(r"10\.\d{4,9}/[A-Za-z0-9._()/:-]+")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TEST_PART = re.compile(r"(^|[_-])test([_-]|\.|$)", re.IGNORECASE)
_ALGORITHMS = {"MD5": "md5", "SHA-1": "sha1", "SHA-256": "sha256", "SHA-512": "sha512"}
_CHUNK = 1 << 16  # bytes; at most so many are lost when a connection breaks
_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer
_FIRST_CONTACT = 15.0  # seconds of patience at most with a repository that has not answered yet
_LONGEST_PAUSE = 10.0  # seconds
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class PublishedFile:
    """A file that the repository lists: where to fetch it, its size in bytes and its checksum ("md5:<hex>").

    The size is None where the repository does not say that of the original file.
    """

    name: str
    url: str
    size: int | None
    checksum: str


def fetched_folder(params: DataParams) -> Path:
    """The cache folder with all files of the data set that ingest reads, fetched as far as they are not there yet.

    Raises
    ------
    InputError
        when the DOI is none, the repository does not know it or does not answer, or a file does not fit its checksum.
    """
    doi, folder = _place(params)
    if not _is_complete(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                _fetch(folder, doi, params)
        except OSError as error:
            raise InputError(f"can not write to {folder}: {error.strerror}; set DERMAFLOW_HOME to a place with room") from error
    return folder


def is_fetched(params: DataParams) -> bool:
    """Whether all files of the data set are in the cache; raises InputError when the DOI is none."""
    return _is_complete(_place(params)[1])


def _place(params: DataParams) -> tuple[str, Path]:
    """The DOI that `data.source` names, and its folder in the cache."""
    doi = params.source.partition(":")[2]
    if not _DOI.fullmatch(doi):
        raise InputError(f"data.source: {shown(params.source)} is no DOI; write it as doi:{HAM10000_DOI}")
    return doi, (places.cache() / "downloads" / re.sub(r"[^A-Za-z0-9.-]", "_", doi)).absolute()


def _is_complete(folder: Path) -> bool:
    """Whether all files are there; each was checked when it came, before it got its name."""
    listing = folder / _LISTING
    return listing.exists() and all(_is_there(folder / name, size) for name, size in read_json(listing).items())


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process fetches the same data set."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(folder: Path, doi: str, params: DataParams) -> None:
    import pooch

    files = _published_files(doi, params)
    _refuse_full_disk(folder, files)
    pooch.get_logger().setLevel("WARNING")
    store = pooch.create(
        path=folder,
        base_url="",
        registry={file.name: file.checksum for file in files},
        urls={file.name: file.url for file in files},
    )
    for file in files:
        try:
            store.fetch(file.name, downloader=_Download(file, params))
        except ValueError as error:  # pooch's word for a checksum that does not fit; it has removed the file
            raise InputError(
                f"{file.url} does not have the checksum that the repository lists for {file.name} ({file.checksum}); what came "
                "was removed. Run again; if it stays so, get the file elsewhere and give its folder as data.source"
            ) from error
    write_json(folder / _LISTING, {file.name: (folder / file.name).stat().st_size for file in files})


def _refuse_full_disk(folder: Path, files: list[PublishedFile]) -> None:
    needed = sum(file.size or 0 for file in files if not (folder / file.name).exists())
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.glob(".*.part"))
    if needed > free:
        raise InputError(
            f"{folder} has room for {free / 1e9:.1f} GB, {needed / 1e9:.1f} GB are to come; set DERMAFLOW_HOME elsewhere"
        )


def _published_files(doi: str, params: DataParams) -> list[PublishedFile]:
    """The files of a data set's latest version that ingest reads."""
    import requests

    url = f"{params.repository.rstrip('/')}/api/datasets/:persistentId"
    answer = _patiently(
        lambda: _checked(requests.get(url, params={"persistentId": f"doi:{doi}"}, timeout=_TIMEOUT)),
        f"doi:{doi}",
        params,
        min(params.patience_seconds, _FIRST_CONTACT),
    )
    try:
        listed = [entry["dataFile"] for entry in answer.json()["data"]["latestVersion"]["files"]]
        files = [_published(file, params) for file in listed if _is_wanted(file["filename"])]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url} does not answer as a Dataverse does ({error!r}); correct data.repository") from error
    if not files:
        raise InputError(f"doi:{doi} lists no archive, image or metadata that ingest reads; give another data.source")
    return files


def _is_wanted(name: str) -> bool:
    lower = name.lower()
    table = "metadata" in lower and (lower.endswith(TABLE_ENDINGS) or "." not in lower)
    return (table or lower.endswith((".zip", *IMAGE_ENDINGS))) and not _TEST_PART.search(name)


def _published(file: dict[str, Any], params: DataParams) -> PublishedFile:
    name, converted = str(file["filename"]), "originalFileFormat" in file
    if converted:
        name = str(file.get("originalFileName") or name)
    if not _SAFE_NAME.fullmatch(name):
        raise InputError(
            f"{params.source} lists a file named {shown(name)}; allowed: letters, digits, dot, dash and underscore"
        )
    checksum = file.get("checksum") or {"type": "MD5", "value": file["md5"]}
    if checksum["type"] not in _ALGORITHMS:
        raise InputError(
            f"{params.source} lists {name} with a checksum of type {shown(checksum['type'])}; allowed: {', '.join(_ALGORITHMS)}"
        )
    return PublishedFile(
        name=name,
        url=f"{params.repository.rstrip('/')}/api/access/datafile/{int(file['id'])}{'?format=original' if converted else ''}",
        size=file.get("originalFileSize") if converted else file.get("filesize"),
        checksum=f"{_ALGORITHMS[checksum['type']]}:{checksum['value'].lower()}",
    )


class _Download:
    """Fetches one file for pooch; what came before a failure is kept beside it, and only the rest is asked for."""

    def __init__(self, file: PublishedFile, params: DataParams) -> None:
        self._file = file
        self._params = params

    def __call__(self, url: str, output_file: str, _store: Any) -> None:
        part = Path(output_file).parent / f".{self._file.name}.part"
        _patiently(
            lambda: self._go_on(url, part),
            url,
            self._params,
            self._params.patience_seconds,
            lambda: part.stat().st_size if part.exists() else 0,
        )
        part.replace(output_file)

    def _go_on(self, url: str, part: Path) -> None:
        import requests

        have = part.stat().st_size if part.exists() else 0
        if self._file.size is not None and have == self._file.size:
            return
        headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                part.unlink(missing_ok=True)  # more than there is to have: not this file
                raise requests.ConnectionError("what was fetched before does not fit the file")
            _checked(answer)
            goes_on = answer.status_code == requests.codes.partial_content
            with part.open("ab" if goes_on else "wb") as out:
                self._write(answer, out)

    def _write(self, answer: Any, out: Any) -> None:
        import requests

        promised = out.tell() + int(answer.headers.get("Content-Length", 0))
        for chunk in answer.iter_content(_CHUNK):
            out.write(chunk)
            progress(f"fetching {self._file.name} (MB)", out.tell() >> 20, (self._file.size or promised) >> 20)
        if out.tell() < promised:
            raise requests.ConnectionError(f"the connection ended after {out.tell()} of {promised} bytes")


def _checked(answer: Any) -> Any:
    """An answer that is one; raises InputError for what waiting does not mend."""
    import requests

    code = answer.status_code
    if code in (requests.codes.unauthorized, requests.codes.forbidden):
        raise InputError(
            f"{answer.url} is restricted ({code}): get the files with a browser, and give their folder as data.source"
        )
    if code == requests.codes.not_found:
        raise InputError(f"{answer.url} is not known there; correct the DOI in data.source, or data.repository")
    if 400 <= code < 500 and code not in (requests.codes.request_timeout, requests.codes.too_many_requests):
        raise InputError(f"{answer.url} answers {code} {answer.reason}; correct data.repository")
    answer.raise_for_status()  # the rest may pass: it is asked again
    return answer


def _patiently(
    ask: Callable[[], _Answer], what: str, params: DataParams, patience: float, got: Callable[[], int] = lambda: 0
) -> _Answer:
    """Ask until there is an answer; whenever more bytes came (`got`), patience begins anew."""
    import requests

    began, had, pause = time.monotonic(), got(), 0.2
    while True:
        try:
            return ask()
        except requests.RequestException as error:
            if got() > had:
                began, had, pause = time.monotonic(), got(), 0.2
            waited = time.monotonic() - began
            if waited >= patience:
                raise InputError(
                    f"{what}: {params.repository} does not answer, for {waited:.0f} s by now ({str(error)[:200]}). Connect to "
                    "it, name a mirror in data.repository, or give a folder with the files as data.source; what came is kept"
                ) from error
            tell("waiting", text=f"waiting for {params.repository}", what=what, seconds=round(waited, 1))
        time.sleep(min(pause, max(patience - waited, 0.01)))
        pause = min(2 * pause, _LONGEST_PAUSE)
