"""Which files a path means: a file, a pattern, a folder with or without splits, or what was saved."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

from ...runtime.files import dangling_link, read_json
from .kinds import READABLE, ending, named_kind
from .places import Setting, listed

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?$")
METADATA = {
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json",
    "package.json", "manifest.yaml", "readme.txt", "license.txt", "requirements.txt",
}  # fmt: skip
Splits = dict[str, list[Path]]
"""The files of each split in their order; one split without a name where the files name none."""
UNNAMED = ""


def find_splits(setting: Setting) -> Splits:
    """The files that a path means, by split. Raises DataError where there is none or it is not clear."""
    path = Path(setting.value).expanduser()
    if path.is_dir():
        return _saved(setting, path) or _folder(setting, path)
    if path.is_file():
        return {UNNAMED: [path]}
    if path.exists():  # rows are read more than once, which a pipe or a terminal cannot give
        raise setting.error("is no file but a pipe or a device; write its rows into a file.")
    if not glob.has_magic(setting.value):
        raise setting.error(f"{dangling_link(path) or 'no such file or folder'}; give a path that exists.")
    return _pattern(setting, path)


def choose_split(
    setting: Setting, splits: Splits, split: str | None, split_key: str, remedy: str
) -> list[Path]:
    """The files of a split; where files name none, all of them are `train`.

    `split`: None for the only one there is. Raises DataError, naming the splits that exist; `remedy`: what
    helps where there is none, or where several are there and no setting chooses.
    """
    names = list(splits)
    if split is None and len(names) == 1:
        return splits[names[0]]
    if split is None:
        raise setting.error(f"has the splits {listed(names, 20)}; {remedy}")
    if names == [UNNAMED]:
        if split != "train":
            raise Setting(split_key, split).error(f"{setting.key}={setting.value} has no splits; {remedy}")
        return splits[UNNAMED]
    if split not in splits:
        raise setting.error(f"has no split {split!r}; set {split_key} to one of {listed(names, 20)}.")
    return splits[split]


def unread_files(path: Path, splits: Splits) -> list[str]:
    """The files of a folder that no split has, but for hidden ones, read-mes, licenses and descriptions."""
    read = {file for files in splits.values() for file in files}
    others = (file for file in path.rglob("*") if file.is_file() and file not in read)
    return sorted(
        str(file.relative_to(path))
        for file in others
        if file.name[0] not in "._"
        and _is_shown(file, path)
        and file.name.lower() not in METADATA
        and file.stem.lower() not in ("readme", "license")
    )


def is_saved(path: Path) -> bool:
    """Whether `datasets` wrote this folder with save_to_disk."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def one_kind(setting: Setting, files: list[Path], folder: bool) -> list[Path]:
    """The files, unless they are of several kinds, of which two may hold the same rows. Raises DataError."""
    endings = sorted({ending(file) for file in files})
    if folder and len(endings) > 1:
        raise setting.error(
            f"holds files of several kinds ({', '.join(endings)}), which may be the same rows twice; "
            f"name those of one kind: {setting.key}='{setting.value.rstrip('/')}/**/*{endings[-1]}'."
        )
    return files


# ---- what save_to_disk wrote


def _saved(setting: Setting, path: Path) -> Splits:
    if (path / "dataset_dict.json").is_file():
        names = (_json(setting, path / "dataset_dict.json")).get("splits") or []
        return {str(name): _saved_files(setting, path / str(name)) for name in names}
    if (path / "state.json").is_file():
        return {UNNAMED: _saved_files(setting, path)}
    return {}


def _saved_files(setting: Setting, path: Path) -> list[Path]:
    listed_files = _json(setting, path / "state.json").get("_data_files") or []
    files = [path / str(entry["filename"]) for entry in listed_files if "filename" in entry]
    if missing := [file.name for file in files if not file.is_file()]:
        raise setting.error(f"{path / missing[0]} is gone, which its state.json names; write it anew.")
    return files


def _json(setting: Setting, path: Path) -> dict:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise setting.error(f"{path} cannot be read, without which save_to_disk's files mean nothing.")
    return content


# ---- folders and patterns


def refuse_dangling(setting: Setting, files: Iterable[Path]) -> None:
    """Raise DataError where one of the files is a link to what is not there, as its rows would be missing."""
    for file in files:
        if problem := dangling_link(file.parent, file.name):
            raise setting.error(f"{problem}; fetch it, or remove the link.")


def _folder(setting: Setting, path: Path) -> Splits:
    found = _data_files(file for file in path.rglob("*") if _is_shown(file, path))
    refuse_dangling(setting, found)
    files = [file for file in found if file.parent == path]
    deeper = [file for file in found if file.parent != path]
    if not found:
        others = listed(sorted({file.suffix or file.name for file in path.iterdir() if file.is_file()}))
        raise setting.error(f"holds no file of rows{f' ({others})' if others else ''}; give {READABLE}.")
    if files and deeper:
        raise setting.error(
            f"holds files ({listed(file.name for file in files)}) and others in folders of it "
            f"({listed(str(file.relative_to(path)) for file in deeper)}); name one file or folder of them, "
            f"or all of them: {setting.key}='{setting.value.rstrip('/')}/**/*{ending(files[0])}'."
        )
    splits = _by_split(setting, found, lambda file: file.relative_to(path))
    return splits or {UNNAMED: found}


def _pattern(setting: Setting, path: Path) -> Splits:
    found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    refuse_dangling(setting, found)
    files = sorted(file for file in found if file.is_file())
    if not files:
        what = "matches folders alone" if found else f"matches no file (looked from {Path.cwd()})"
        raise setting.error(f"{what}; correct it, and quote it if the shell shall not expand it.")
    splits = _by_split(setting, files, lambda file: PurePath(file.name))
    return splits if len(splits) > 1 else {UNNAMED: files}  # of one split: that one is meant


def _data_files(paths: Iterable[Path]) -> list[Path]:
    """The files of rows, sorted; of texts, which may be notes, only where nothing else is there."""
    files = sorted(
        path
        for path in paths
        if named_kind(path)
        and (path.is_file() or (path.is_symlink() and not path.exists()))
        and path.name.lower() not in METADATA
        and path.name[0] not in "._"
    )
    return [file for file in files if named_kind(file) != "text"] or files


def _is_shown(file: Path, folder: Path) -> bool:
    """Whether no folder above the file, in `folder`, is hidden: `.cache` of `hf download`, `.git`."""
    return all(name[0] not in "._" for name in file.relative_to(folder).parts[:-1])


def _by_split(setting: Setting, files: list[Path], within: Callable[[Path], PurePath]) -> Splits:
    """Files by the split that their names or their folders say; none where no file says one.

    Raises DataError where some do and others do not.
    """
    shards = {file: match[1] for file in files if (match := SHARD.match(_stem(file)))}
    named_shards = any(_split_word(name) for name in shards.values())
    splits: Splits = {}
    for file in files:
        name = shards[file] if named_shards and file in shards else _split_of(within(file))
        splits.setdefault(name or UNNAMED, []).append(file)
    if UNNAMED in splits and len(splits) > 1:
        named = next(name for name in splits if name)
        raise setting.error(
            f"holds files of a split ({splits[named][0].name}: {named}) and others of none "
            f"({listed(file.name for file in splits[UNNAMED])}); name one file with {setting.key}, or "
            "several with a pattern such as 'rows/part-*.jsonl'."
        )
    return splits if UNNAMED not in splits else {}


def _split_of(path: PurePath) -> str | None:
    """The split that a folder's name, or the file's own, says."""
    return next((word for part in (*path.parts[:-1], _stem(path)) if (word := _split_word(part))), None)


def _split_word(name: str) -> str | None:
    words = re.split(r"[-._ 0-9]+", name.lower())
    return next((split for split, known in SPLIT_WORDS.items() if any(word in known for word in words)), None)


def _stem(path: PurePath) -> str:
    return path.name[: -len(ending(Path(path))) or None]
