"""The official files: what is published, where it lies on this machine, and how it is fetched."""

from numpygpt.files.download.facts import ALIASES, HUGGING_FACE_FILES, OFFERS, File, official_name
from numpygpt.files.download.places import (
    DownloadError,
    by_hand,
    cached_repository,
    cached_snapshot,
    find,
    verdict,
    weights_folder,
)
from numpygpt.files.download.transfer import Patience, download

__all__ = [
    "ALIASES",
    "HUGGING_FACE_FILES",
    "OFFERS",
    "DownloadError",
    "File",
    "Patience",
    "by_hand",
    "cached_repository",
    "cached_snapshot",
    "download",
    "find",
    "official_name",
    "verdict",
    "weights_folder",
]
