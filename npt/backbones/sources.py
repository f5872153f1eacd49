"""What a value of MODEL.BACKBONE.NAME means: which files, and what is written about them.

    ViT-B/16                              a model of OpenAI's (`npt.backbones.catalog.MODELS`)
    tiny                                  the small CLIP of npt
    clip.pt                               a file of OpenAI's or open_clip's kind
    folder                                config.json or open_clip_config.json, and weights
    hf:openai/clip-vit-base-patch16       such a folder in Hugging Face's hub
    open_clip:ViT-B-16/laion2b_s34b_b88k  a model and a tag of open_clip
    open_clip:ViT-B-16//data/weights.pt   a model of open_clip and a file with its weights

Nothing here imports torch: the images of a run are prepared as its CLIP needs them, which the
config has to say before the CLIP is loaded.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from npt.backbones import hugging_face, openclip
from npt.backbones.catalog import ADDRESS, MODELS, TINY, Form, Preprocessing, Unsuitable
from npt.download import fetch, has_checksum
from npt.errors import NPTError
from npt.files import file_digest

CACHE = Path("~/.cache/clip")  # of the package clip
TINY_FILE = Path(__file__).with_name("tiny_clip.npz")
HUB, OPEN_CLIP, OPEN_CLIP_HUB = "hf:", "open_clip:", "open_clip:hf-hub:"

Get = Callable[[str], "Path | None"]  # the file of that name in a repository; None if it has none


class Source(NamedTuple):
    """files: gives the files of the weights, and may download them
    form: what is written about them; None: nothing is
    written: the files that say it
    """

    files: Callable[[], tuple[Path, ...]]
    form: Form | None = None
    written: tuple[Path, ...] = ()


def find(name: str) -> Source:
    """Where the CLIP of that name comes from. NPTError if there is none, or it is none of CLIP's.

    Files that say what it is are downloaded, its weights not yet.
    """
    try:
        return _find(name)
    except Unsuitable as reason:
        raise reason.of(name) from reason


def _find(name: str) -> Source:
    if name == "tiny":
        return Source(lambda: (TINY_FILE,), Form(preprocessing=Preprocessing(TINY)))
    if name in MODELS:
        usual = Form(preprocessing=Preprocessing(MODELS[name].size))
        return Source(lambda: (download(name),), usual)
    for prefix in (OPEN_CLIP_HUB, HUB):
        if name.startswith(prefix):
            return _repository(name, _hub(name, name.removeprefix(prefix)))
    if name.startswith(OPEN_CLIP):
        return _open_clip(name)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _repository(name, lambda file: path / file if (path / file).is_file() else None)
    if path.is_file():
        beside = path.with_name(openclip.CONFIG)
        if beside.is_file():
            return Source(lambda: (path,), _form_of(beside), (beside,))
        return Source(lambda: (path,))
    raise NPTError(
        f"unknown CLIP {name!r} in MODEL.BACKBONE.NAME: it is not a file; set it to the path of a "
        f"file or folder, to 'hf:ORGANISATION/NAME', 'open_clip:MODEL/TAG', 'tiny', or to one of "
        f"{', '.join(MODELS)}"
    )


def preprocessing_of(name: str) -> Preprocessing:
    """How images are prepared for the CLIP of that name. NPTError as in `find`."""
    source = find(name)
    if source.form is not None and source.form.preprocessing is not None:
        return source.form.preprocessing
    (file,) = source.files()
    status = file.stat()
    return Preprocessing(_size(file, status.st_mtime_ns, status.st_size))


@cache
def _size(file: Path, modified: int, size: int) -> int:
    from npt.backbones.loading import image_size_of

    return image_size_of(file)


def files_of(name: str) -> tuple[Path, ...]:
    """The files of the CLIP of that name, first those of the weights, then what says their use.

    Empty if there is no such CLIP. OpenAI's are not downloaded, and need not be there.
    """
    if name in MODELS:
        return (cached()[name],)
    try:
        source = find(name)
        return (*source.files(), *source.written)
    except NPTError:
        return ()


def is_fixed(name: str) -> bool:
    """Whether a name means the same weights everywhere."""
    return name == "tiny" or name in MODELS


def digest_of(name: str) -> str:
    """A checksum of the files of the CLIP of that name, and of what its name says of them.

    Empty if they are not here.
    """
    parts = [file_digest(str(file)) for file in files_of(name)]
    if name.startswith(OPEN_CLIP) and parts:
        parts.append(repr(find(name).form))
    if len(parts) == 1:
        return parts[0]
    return hashlib.sha256("".join(parts).encode()).hexdigest() if parts else ""


# ---- OpenAI's models


def cached() -> dict[str, Path]:
    """The place of each of OpenAI's models in the cache of the package clip, by name."""
    return {name: CACHE.expanduser() / model.file for name, model in MODELS.items()}


def is_whole(name: str) -> bool:
    """Whether the file of that name in the cache has the published checksum."""
    return has_checksum(cached()[name], f"sha256:{MODELS[name].sha256}")


def fetch_openai(name: str) -> Path:
    """Download OpenAI's file of that name to the cache of the package clip, if it is not there.

    An interrupted download is continued. (clip's own download would start from the beginning.)
    """
    model, file = MODELS[name], cached()[name]
    if file.is_file():
        if is_whole(name):
            return file
        file.unlink()
    return fetch(f"{ADDRESS}/{model.sha256}/{model.file}", file, f"sha256:{model.sha256}")


def download(name: str) -> Path:
    """The file of one of OpenAI's models, in the cache ~/.cache/clip or from the network."""
    try:
        return fetch_openai(name)
    except (NPTError, OSError) as error:
        reason = str(error).rstrip(".")
        raise NPTError(
            f"CLIP {name} is not in ~/.cache/clip and cannot be downloaded ({reason}); copy its "
            "file from another machine and set MODEL.BACKBONE.NAME to the path, or use 'tiny'"
        ) from error


# ---- repositories: a folder, or one in the hub of Hugging Face


def _repository(name: str, get: Get) -> Source:
    config = get(hugging_face.CONFIG)
    about = {} if config is None else _json(config)
    described = get(openclip.CONFIG)
    # A repository of open_clip may have a config.json that says nothing, or less.
    if config is not None and ("model_type" in about or described is None):
        written = [path for file in hugging_face.PROCESSORS if (path := get(file)) is not None]
        processor = _json(written[0]) if written else {}
        processor = processor.get("image_processor") or processor
        form = _read(config, hugging_face.form, about, processor)
        names = (*hugging_face.WEIGHTS, *openclip.WEIGHTS)
        return Source(lambda: _weights(name, get, names), form, (config, *written[:1]))
    if described is None:
        raise NPTError(
            f"{name} (MODEL.BACKBONE.NAME) has no {hugging_face.CONFIG} or {openclip.CONFIG}, "
            "which say what its weights are; name a file, or a folder with one of them"
        )
    names = (*openclip.WEIGHTS, *hugging_face.WEIGHTS)
    return Source(lambda: _weights(name, get, names), _form_of(described), (described,))


def _form_of(config: Path) -> Form:
    """What an open_clip_config.json says."""
    content = _json(config)
    model = content.get("model_cfg") or content
    return _read(config, openclip.form, model, content.get("preprocess_cfg") or {})


def _read(file: Path, read: Callable[..., Form], *content: Mapping[str, Any]) -> Form:
    """What `read` makes of the content of a file. NPTError if that is no config of a CLIP."""
    try:
        return read(*content)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise NPTError(f"{file} does not describe a CLIP ({reason}); get the file again") from error


def _weights(name: str, get: Get, names: tuple[str, ...]) -> tuple[Path, ...]:
    """The files of the first of the weights `names` that there are."""
    for file in names:
        path = get(file)
        if path is not None:
            return (path,)
        index = get(f"{file}{hugging_face.INDEX}")
        if index is not None:
            return _parts(name, get, index)
    raise NPTError(
        f"{name} (MODEL.BACKBONE.NAME) has no weights: none of {', '.join(names)} is there"
    )


def _parts(name: str, get: Get, index: Path) -> tuple[Path, ...]:
    """The files that an index of weights in several files names."""
    try:
        parts = sorted(set(_json(index)["weight_map"].values()))
        if not parts or any(Path(part).name != part for part in parts):
            raise ValueError("it names no files of its folder")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NPTError(f"{index} is no index of weights ({error}); get the file again") from error
    found = [get(part) for part in parts]
    missing = [part for part, path in zip(parts, found, strict=True) if path is None]
    if missing:
        raise NPTError(f"{name} (MODEL.BACKBONE.NAME) lacks {missing[0]}; get the file again")
    return tuple(path for path in found if path is not None)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise NPTError(f"{file} is not JSON ({error}); get the file again") from error
    if not isinstance(content, Mapping):
        raise NPTError(f"{file} is no JSON object; get the file again")
    return dict(content)


@cache
def _hub(name: str, repository: str) -> Get:
    """Files of a repository of the hub, from its cache on this machine or from the network."""
    hub = _package("huggingface_hub", name, "hf")
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    @cache
    def get(file: str) -> Path | None:
        try:
            return Path(hub.hf_hub_download(repository, file))
        except LocalEntryNotFoundError as error:  # first: it is an EntryNotFoundError, too
            known = hub.try_to_load_from_cache(repository, file)
            if known is not None and not isinstance(known, str):
                return None  # it was asked for before, and is not there
            reason = str(error).splitlines()[0]
        except EntryNotFoundError:
            return None
        except Exception as error:  # of many libraries of the network
            reason = (str(error) or type(error).__name__).splitlines()[0]
        raise NPTError(
            f"{name} (MODEL.BACKBONE.NAME) cannot be downloaded ({reason}): check the "
            "name, or copy the repository from another machine and name its folder"
        )

    return get


# ---- open_clip


def _open_clip(name: str) -> Source:
    """open_clip:MODEL/TAG or open_clip:MODEL/FILE; MODEL may be spelled as OpenAI spells it."""
    package = _package("open_clip", name, "open_clip")
    words = name.removeprefix(OPEN_CLIP)
    parts = words.split("/")
    models = set(package.list_models())
    splits = [("-".join(parts[:i]), "/".join(parts[i:])) for i in range(len(parts), 0, -1)]
    model, tag = next((split for split in splits if split[0] in models), ("", ""))
    if not model:
        raise NPTError(
            f"{name} (MODEL.BACKBONE.NAME) names no model that open_clip has; "
            f"python -c 'import open_clip; print(open_clip.list_pretrained())' lists them"
        )
    config = package.get_model_config(model)
    about = package.get_pretrained_cfg(model, tag)
    form = openclip.form(config, about, bool(about.get("quick_gelu")) if about else None)
    if about:
        if bool(about.get("quick_gelu")) != bool(config.get("quick_gelu")):
            warnings.warn(
                f"{name}: these weights were trained with "
                f"{'QuickGELU' if about.get('quick_gelu') else 'GELU'}, which is taken; open_clip "
                f"itself takes the other one for the model {model}",
                stacklevel=2,
            )
        return Source(lambda: (_tagged(name, package, about),), form)
    file = Path(tag).expanduser()
    if tag and file.is_file():
        return Source(lambda: (file,), form)
    known = ", ".join(package.list_pretrained_tags_by_model(model))
    what = f"{tag!r} is no file and no tag of {model}" if tag else f"it names no weights of {model}"
    tags = f"open_clip:{model}/TAG with one of the tags {known}, or " if known else ""
    raise NPTError(
        f"{name} (MODEL.BACKBONE.NAME): {what}; write {tags}open_clip:{model}/FILE with the path "
        "of its weights"
    )


def _tagged(name: str, package: Any, about: dict[str, Any]) -> Path:
    """The file of a tag, downloaded by open_clip if it is not in its cache."""
    try:
        return Path(package.download_pretrained(about))
    except Exception as error:  # of many libraries of the network
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise NPTError(
            f"{name} (MODEL.BACKBONE.NAME) cannot be downloaded ({reason}): copy the file from "
            "another machine and write its path in place of the tag"
        ) from error


def _package(module: str, name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NPTError(
            f"{name} (MODEL.BACKBONE.NAME) needs {module}, which is not installed ({error}): "
            f'pip install "npt-clip[{extra}]"'
        ) from error
