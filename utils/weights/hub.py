"""Weights on the Hugging Face hub: `hf://user/repository/file` and `hf://user/repository@revision/file`."""

import http
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import huggingface_hub  # which imports its parts when they are used
from huggingface_hub import constants

from sed_sr.options.errors import UserError, did_you_mean, one_line
from sed_sr.utils.weights.download import WeightsMissing, failure_reason, offline_variable

SCHEME = "hf://"
REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
ADDRESS = re.compile(rf"{SCHEME}(?P<repository>{REPOSITORY.pattern})(@(?P<revision>[^/@]+))?/(?P<file>.+)", re.ASCII)
LISTED_FILES = 5  # of a repository, in a message
LOG_IN = "`hf auth login` or the variable HF_TOKEN"


class HubFile(NamedTuple):
    """A file in a repository of the hub."""

    repository: str  # user/name
    file: str
    revision: str | None  # branch, tag or commit; None: the newest version

    @classmethod
    def parse(cls, address: str) -> "HubFile":
        """Raises UserError if it is not the address of a file."""
        found = ADDRESS.fullmatch(address)
        if not found or not {"", ".", ".."}.isdisjoint(found["file"].split("/")):
            raise UserError(
                f"{address} is not the address of a file on the Hugging Face hub: expected was "
                f"{SCHEME}user/repository/file or {SCHEME}user/repository@revision/file"
            )
        return cls(found["repository"], found["file"], found["revision"])


def is_address(text: str) -> bool:
    """Whether a text is meant as an address on the hub, and not as a path."""
    return text.startswith(SCHEME)


def fetch(address: str, *, only_cached: bool = False) -> Path:
    """The path of a file of the hub in the cache of huggingface_hub ($HF_HOME), which downloads it if necessary.

    Without a connection, the version that was downloaded last is used.

    Args:
        only_cached: use no connection.

    Raises:
        WeightsMissing: there is no such repository or file, no access to it, no connection, or no space for it.
        UserError: `address` is not valid.
    """
    hub_file, offline = HubFile.parse(address), offline_variable()
    repository, file, revision = hub_file
    try:
        path = huggingface_hub.hf_hub_download(
            repository, file, revision=revision, local_files_only=only_cached or offline is not None
        )
    except Exception as error:  # of huggingface_hub, httpx, requests or hf_xet, by version
        if offline is None and not only_cached:
            reason = _why_not_downloaded(error, hub_file)
        else:
            forbidden = f", and {offline} forbids downloads" if offline else ""
            reason = (
                f"it is not in the cache of huggingface_hub{forbidden}; run `python -m utils.weights fetch {address}` "
                "where there is a network, and copy the cache ($HF_HOME)"
            )
        raise WeightsMissing(f"{address} could not be downloaded: {reason}") from error
    return Path(path)


def _why_not_downloaded(error: Exception, hub_file: HubFile) -> str:
    from huggingface_hub import errors  # here, because it takes 0.1 s to import, and `list` should be quick

    repository, file, revision = hub_file
    if isinstance(error, errors.GatedRepoError):
        return f"{_url(repository)} is gated: accept its conditions there, then log in with {LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no repository {_url(repository)}, or it is private, which needs {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{_url(repository)} has no revision {revision}"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        files = _files_of(repository, revision)
        near = did_you_mean(file, files)
        listed = f"; it has {', '.join(files[:LISTED_FILES])}{', ...' * (len(files) > LISTED_FILES)}" if files else ""
        return one_line(f"{_url(repository)} has no file {file}{near or listed}")
    return _reason(error)


def _files_of(repository: str, revision: str | None) -> Sequence[str]:
    """The files of a repository; none if they cannot be listed."""
    try:
        return huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
    except Exception:  # as of `fetch`; the list is only for a message
        return ()


def check_name(repository: str) -> None:
    """Raise UserError if a text cannot be the name of a repository, user/name."""
    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"{repository} is not a repository of the Hugging Face hub: expected was user/name")


def check_upload(repository: str) -> None:
    """Raise UserError if downloads are forbidden, or if there is no token."""
    offline = offline_variable()
    if offline:
        raise UserError(f"nothing can be uploaded to {repository}: {offline} forbids connections")
    if huggingface_hub.get_token() is None:
        raise UserError(
            f"an upload to {repository} needs a token with the permission to write, from {_url('settings/tokens')}: "
            f"give it to {LOG_IN}"
        )


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Upload the files of a folder to a repository in one commit. The repository is created if it does not exist.

    Args:
        private: only the owner can see the repository; False: as it is, or for a new one, as the owner's settings say.

    Returns:
        The address of the commit.

    Raises:
        UserError: no connection, no permission, or `private` is set for a repository that is public.
    """
    hub = huggingface_hub.HfApi()
    names = sorted(path.name for path in folder.iterdir())
    try:
        create = partial(hub.create_repo, repository, exist_ok=True)
        create(private=True) if private else create()
        if private and not hub.model_info(repository).private:
            raise UserError(
                f"nothing was uploaded: {_url(repository)} exists and is public; make it private in its settings, or "
                "leave out --private"
            )
        commit = hub.create_commit(
            repository,
            [huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names],
            commit_message=f"Upload {' and '.join(names)}",
        )
    except UserError:
        raise
    except Exception as error:  # as of `fetch`
        raise UserError(f"nothing was uploaded to {_url(repository)}: {_reason(error)}") from error
    return commit.commit_url


def _url(page: str) -> str:
    return f"{constants.ENDPOINT}/{page}"


def _reason(error: Exception) -> str:
    """Why a download or an upload failed: the hub's answer, or the error of the network or of the disk."""
    cause: BaseException | None = error
    while cause is not None:  # an upload in a thread raises an error from the one of the request
        response = getattr(cause, "response", None)
        if response is not None:
            said = getattr(cause, "server_message", None) or http.HTTPStatus(response.status_code).phrase
            token = f" (is the token right, and may it do this? {LOG_IN})" if response.status_code in (401, 403) else ""
            return one_line(f"{response.status_code} {' '.join(said.split())}{token}")
        cause = cause.__cause__
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return one_line(" ".join(failure_reason(error).split()))
