"""The pictures by name, and what is done with one: run, draw, check against the theory, write."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._checks import check_flag, shown
from .._errors import UsageError
from .._files import check_writable, local_path, write_netcdf
from .._registry import Registry
from ..results.tables import aligned
from ..settings import enable_x64, take_cpu_cores
from . import cross_entropy, imbalance, losses, margin, minority_collapse, order_of_learning
from .base import Picture

if TYPE_CHECKING:
    import xarray as xr

PICTURES: Registry[Picture] = Registry(
    "picture",
    {
        "cross-entropy": cross_entropy.PICTURE,
        "margin": margin.PICTURE,
        "minority-collapse": minority_collapse.PICTURE,
        "order-of-learning": order_of_learning.PICTURE,
        "losses": losses.PICTURE,
        "imbalance": imbalance.PICTURE,
    },
    instead="name one module:name",
    admits=lambda entry: isinstance(entry, Picture),
)
"""The pictures by name. To add your own picture, assign `PICTURES["name"] = Picture(...)`."""

SUFFIXES = (".nc", ".png", ".pdf")


def run(name: str, *, progress: bool = False) -> "xr.Dataset":
    """Make the data of a picture from real runs, on all CPU cores and in double precision.

    Args:
        name: the name of the picture, see `PICTURES`.
        progress: show progress bars on standard error.

    Returns:
        A Dataset with the runs, the theory's values beside them, and the sources and provenance as attributes.

    Raises:
        UsageError: for an unknown name.

    Source: the attribute `sources` of the Dataset.

    Example:
        >>> from flowcollapse import gallery
        >>> data = gallery.run("order-of-learning")
        >>> data.attrs["picture"], "predicted_time" in data
        ('order-of-learning', True)
    """
    name = PICTURES.name(name)
    check_flag("progress", progress)
    take_cpu_cores(None)
    enable_x64()
    picture = PICTURES[name]
    about = {"picture": name, "title": picture.title, "sources": picture.sources}
    return picture.run(progress).assign_attrs(about)


def draw(dataset: "xr.Dataset") -> Any:
    """Draw a picture from its Dataset.

    Args:
        dataset: a Dataset that `run` made.

    Returns:
        The axes.

    Raises:
        UsageError: for any other Dataset.

    Source: the attribute `sources` of the Dataset.

    Example:
        >>> import xarray, flowcollapse as fc
        >>> try:
        ...     fc.gallery.draw(xarray.Dataset())
        ... except fc.UsageError as error:
        ...     print(error)
        dataset is not one of a picture: pass what gallery.run returns.
    """
    return _picture(dataset).draw(dataset)


def table(dataset: "xr.Dataset") -> str:
    """The laws of a picture, expected and measured, as text.

    Args:
        dataset: a Dataset that `run` made.

    Raises:
        UsageError: for any other Dataset.

    Source: the attribute `sources` of the Dataset.

    Example:
        >>> from flowcollapse import gallery
        >>> "half of its final size" in gallery.table(gallery.run("order-of-learning"))
        True
    """
    rows = [("law", "expected", "measured", "off by", "allowed", "")]
    for check in _picture(dataset).checks(dataset):
        numbers = (f"{check.expected:.6g}", f"{check.measured:.6g}", f"{check.off:.1e}", f"{check.within:.1e}")
        rows.append((check.law, *numbers, "holds" if check.holds else "FAILS"))
    return "\n".join([dataset.attrs["title"], *aligned(rows), f"Sources: {dataset.attrs['sources']}"])


def files_of(name: str, folder: str | Path) -> list[Path]:
    """The files that `write` makes for a picture."""
    return [local_path(folder, "folder") / f"{PICTURES.name(name)}{suffix}" for suffix in SUFFIXES]


def check_folder(name: str, folder: str | Path) -> None:
    """Raise `UsageError` unless the files of a picture can be written to a folder."""
    for file in files_of(name, folder):
        check_writable(file)


def write(dataset: "xr.Dataset", folder: str | Path) -> list[Path]:
    """Write a picture: its Dataset as netCDF, and the drawing as PNG and PDF.

    Args:
        dataset: a Dataset that `run` made.
        folder: the folder, which is made if it does not exist.

    Returns:
        The files.

    Raises:
        UsageError: for any other Dataset, or if the folder cannot be written.

    Source: the attribute `sources` of the Dataset.

    Example:
        >>> import tempfile
        >>> from flowcollapse import gallery
        >>> data = gallery.run("order-of-learning")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [file.name for file in gallery.write(data, folder)]
        ['order-of-learning.nc', 'order-of-learning.png', 'order-of-learning.pdf']
    """
    import matplotlib.pyplot as plt

    from ..plot._style import save

    picture = _picture(dataset)
    files = files_of(dataset.attrs["picture"], folder)
    write_netcdf(dataset, files[0])
    axes = picture.draw(dataset)
    for file in files[1:]:
        save(axes, file)
    plt.close(axes[0].get_figure(root=True))
    return files


def _picture(dataset: Any) -> Picture:
    import xarray as xr

    if not isinstance(dataset, xr.Dataset):
        raise UsageError(f"dataset must be that of a picture, got {shown(dataset)}: pass what gallery.run returns.")
    name = str(dataset.attrs.get("picture"))
    if name not in PICTURES:
        raise UsageError("dataset is not one of a picture: pass what gallery.run returns.")
    return PICTURES[name]
