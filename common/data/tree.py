"""The files below a folder of images: which of them count, and a note on each kind that does not."""

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common.data.support import counted, listed, printable
from common.errors import UserError

# The still images that Pillow reads on its own: without other programs, layers, animations or scientific containers.
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".apng",
    ".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif", ".dib", ".tga", ".icb", ".vda",
    ".vst", ".pcx", ".qoi", ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".dds", ".ico", ".xbm", ".xpm", ".im", ".msp",
)  # fmt: skip
# What operating systems and storage devices put into folders, besides names that start with a dot
SYSTEM_NAMES = (
    "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "ehthumbs.db",
    "desktop.ini", "icon\r",
)  # fmt: skip
SHOWN_SUFFIXES = ", ".join(SUFFIXES[:6]) + " or other image files"
TEXT_SUFFIX = ".txt"


@dataclass
class Tree:
    """Everything below a folder. A path is the name under `root`, also where a link leads elsewhere."""

    root: Path
    images: list[Path] = field(default_factory=list)  # files with the wanted suffixes
    folders: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)  # files with other suffixes
    hidden: list[Path] = field(default_factory=list)  # hidden and system files, and folders, whose files do not count
    repeated: list[Path] = field(default_factory=list)  # links to a file or folder that counts elsewhere
    broken: list[Path] = field(default_factory=list)  # links to nothing
    wanted: str = "an image's"  # whose suffixes are wanted

    def notes(self) -> list[str]:
        """Return a sentence for each kind of file that is left out."""
        notes = []
        if self.others:
            kinds = Counter(path.suffix.lower() or "no suffix" for path in self.others)
            names = listed([f"{number} {kind}" for kind, number in kinds.most_common()])
            notes.append(f"left out: {counted(len(self.others), 'file')} without {self.wanted} suffix ({names})")
        for paths, kind in (
            (self.hidden, "hidden or system item"),
            (self.repeated, "repeated link"),
            (self.broken, "broken link"),
        ):
            if paths:
                notes.append(f"left out: {counted(len(paths), kind)} ({listed(self.names(paths))})")
        return notes

    def names(self, paths: list[Path]) -> list[str]:
        """Return paths relative to the root."""
        return [path.relative_to(self.root).as_posix() for path in paths]


def walk(root: Path, suffixes: Collection[str] = SUFFIXES, wanted: str = "an image's") -> Tree:
    """Return everything below a folder, each list sorted; `suffixes` are those that count, and `wanted` says whose.

    Hidden files and folders are left out at every depth. Links are followed after all that needs no link; a file or
    folder that two names lead to counts once. Raises `UserError` if a folder cannot be read.
    """
    tree, real_root = Tree(root, wanted=wanted), os.path.realpath(root)
    seen: set[str] = {real_root}
    links: list[Path] = []
    folders = [(root, real_root)]

    def take(path: Path, real: str, is_dir: bool, is_file: bool) -> None:
        if real in seen or real_root.startswith(real.rstrip(os.sep) + os.sep):
            tree.repeated.append(path)
            return
        seen.add(real)
        if is_dir:
            tree.folders.append(path)
            folders.append((path, real))
        elif is_file and path.suffix.lower() in suffixes:
            tree.images.append(path)
        else:
            tree.others.append(path)

    while folders or links:
        if not folders:
            links.sort(reverse=True)
            path = links.pop()
            try:
                kind = path.stat().st_mode
            except OSError:
                tree.broken.append(path)
            else:
                take(path, os.path.realpath(path), stat.S_ISDIR(kind), stat.S_ISREG(kind))
            continue
        folder, real = folders.pop()
        for entry in entries(folder):
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
                tree.hidden.append(path)
            elif entry.is_symlink():
                links.append(path)
            else:
                take(path, f"{real}{os.sep}{entry.name}", entry.is_dir(), entry.is_file())
    for paths in (tree.images, tree.folders, tree.others, tree.hidden, tree.repeated, tree.broken):
        paths.sort()
    return tree


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what lies in a folder, in no order; raises `UserError` if the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise UserError(
            f"the folder {printable(str(folder))} cannot be read ({error.strerror}): change its permissions or move it"
        ) from error
