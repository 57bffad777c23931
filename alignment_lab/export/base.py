"""The weights under a run's adapter: those that it was trained on, whatever adapter_config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Model, ModelSource, Shape
from ..content import recorded_weights, weights_in
from ..models.locate import locate_model
from ..runtime.errors import UserError
from ..runtime.files import read_json
from ..runtime.run_directory import RunDirectory

SAY_WHERE = "say where they are: --base=FOLDER."
EMBEDDED_MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def base_name(spec: Mapping[str, Any]) -> tuple[str, bool]:
    """(the initial weights by a name that tells nothing of this machine, whether the Hub knows it)."""
    model = spec["model"]
    if model["source"] == "embedded":
        return EMBEDDED_MODEL_ID, True
    if model["source"] != "hub":
        return f"random weights ({model['name']})", False
    path = str(model["path"])
    is_folder = path.count("/") != 1 or path[0] in "./~" or Path(path).exists()
    return (Path(path).expanduser().absolute().name, False) if is_folder else (path, True)


def find_base(run: RunDirectory, given: Path | None) -> tuple[Path, str | None]:
    """(folder, None or what is to be told of it): `given`, or the base that spec.yaml names.

    Raises UserError where that is not there, or holds other weights than provenance.json recorded. Weights
    that were `given` are taken as they are, and told.
    """
    folder = given or _locate(run)
    trained_on, here = recorded_weights(run), weights_in(folder)
    if not trained_on or trained_on == here:
        return folder, None
    others = f"the weights in {folder} are not those that the run was trained on (provenance.json)"
    if given:
        return folder, f"{others}: merged into them the adapter is another model"
    raise UserError(f"{run.path}: {others}; {SAY_WHERE}")


def _locate(run: RunDirectory) -> Path:
    """The model that spec.yaml names; a relative folder is looked for where the run was started."""
    model: dict[str, Any] = run.spec()["model"]
    source = ModelSource[model["source"]]
    if source is not ModelSource.hub:
        shape = Shape(**model["shape"]) if model.get("shape") else None
        return locate_model(Model(name=model["name"], source=source, shape=shape))
    started_in = Path((read_json(run.provenance_file) or {}).get("directory") or ".")
    path = Path(model["path"]).expanduser()
    for folder in (started_in / path, path):
        if (folder / "config.json").is_file():
            return folder.resolve()
    if path.is_absolute() or model["path"].startswith(".") or len(path.parts) > 2:
        raise UserError(
            f"{run.path}: the weights under this adapter are not in {path} (no config.json there); "
            f"{SAY_WHERE}"
        )
    commit = (read_json(run.model / "adapter_config.json") or {}).get("revision")
    return locate_model(
        Model(name=model["name"], path=model["path"], revision=commit or model.get("revision"))
    )
