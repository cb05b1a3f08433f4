"""The one view of a source in which all weights show as plain floats, whatever layout they are stored in."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from modelopt_rs._types import Array
from modelopt_rs.dtypes import DTYPES, FLOATS, STORED, array_dtype
from modelopt_rs.errors import OptionError, UnsupportedError, quote
from modelopt_rs.layouts.layout import Layout, StoredWeight, WritableLayout
from modelopt_rs.layouts.registry import LAYOUTS, METADATA_KEY
from modelopt_rs.quant.array import QuantizedArray
from modelopt_rs.stream.buffer import Buffer
from modelopt_rs.stream.model import Source, TensorInfo, Tile

__all__ = ["Decompressed", "Dequantized", "PartlyQuantized", "Widened", "check_no_graph", "plain", "stored_nbytes"]

_READ_BYTES = 16 << 20
_OF_ACTIVATIONS: Final = ("input_activations", "output_activations", "kv_cache_scheme", "sparsity_config")


class Dequantized(Source):
    """A source's tensors with each stored weight in its plain form, decoded tile by tile as it is read.

    Every other tensor shows as it is. How a weight is stored is what `config.json` or the file's metadata
    say, and the shapes of its tensors must agree; where neither says anything, the shapes decide.

    Parameters
    ----------
    source : Source
        The model; closing the view closes it.
    dtype : {"F32", "F64", "F16", "BF16"}
        Of quantized weights; those stored as bitmasks keep theirs.
    threads : int, optional
        For the arithmetic. The result does not depend on it.
    layouts : sequence of Layout
        Those that are decoded.

    Attributes
    ----------
    source : Source
        The model as it is.
    stored : mapping of str to StoredWeight
        The weights that are decoded, by their plain names.

    Raises
    ------
    FormatError
        If the tensors of a stored weight don't fit each other. `UnsupportedError`: this form of a layout is not read.
    """

    def __init__(
        self,
        source: Source,
        *,
        dtype: str = "F32",
        threads: int | None = None,
        layouts: Sequence[Layout] | None = None,
    ) -> None:
        if dtype not in ("F32", "F64", "F16", "BF16"):
            raise ValueError(f"Dequantized: dtype must be F32, F64, F16 or BF16, got {dtype!r:.80}")
        self.source, self.container, self.path = source, source.container, source.path
        self._dtype, self._threads = dtype, threads
        stored: list[StoredWeight] = []
        taken: set[str] = set()
        for layout in LAYOUTS if layouts is None else layouts:
            # What a layout knows by its dtypes alone gives way to those before it.
            found = [weight for weight in layout.find(source) if taken.isdisjoint(weight.parts)]
            stored += found
            taken.update(part for weight in found for part in weight.parts)
        self.stored: Mapping[str, StoredWeight] = MappingProxyType({each.info(dtype).name: each for each in stored})
        shown = {each.parts[0]: each.info(dtype) for each in stored}
        hidden = {part for each in stored for part in each.parts[1:]}
        infos = (shown.get(name, info) for name, info in source.tensors.items() if name not in hidden)
        self._tensors = {info.name: info for info in infos}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name, a stored weight under its plain name in the place of its first part."""
        return MappingProxyType(self._tensors)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The source's own metadata, without what they say of how weights are stored."""
        return MappingProxyType({k: v for k, v in self.source.metadata.items() if k != METADATA_KEY})

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The source's own."""
        return self.source.config

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the source."""
        return self.source.notes

    @property
    def graph(self) -> Any:
        """The source's own."""
        return self.source.graph

    @property
    def nbytes(self) -> int:
        """The source's own."""
        return self.source.nbytes

    @property
    def specs(self) -> Mapping[str, Any]:
        """How each quantized weight is coded, by its plain name."""
        return {name: each.spec for name, each in self.stored.items() if each.spec is not None}

    def parts(self, name: str) -> Sequence[str]:
        """Return the names of the source's tensors that stand for `name`."""
        return self.stored[name].parts if name in self.stored else [name]

    def stored_nbytes(self, name: str) -> int:
        """Return the bytes of all that stands for `name`."""
        return sum(self.source.tensors[part].nbytes for part in self.parts(name))

    def origin(self, name: str) -> str:
        """Return the name of the source's tensor in whose place `name` stands: itself, or its first part."""
        return self.parts(name)[0]

    def read(self, name: str) -> Array:
        """Return one tensor, whole, as a new array of its own shape."""
        if name not in self.stored:
            return self.source.read(name)
        info = self._tensors[name]
        out = np.empty(info.shape, array_dtype(info.dtype))
        rows = out.reshape(info.rows, info.columns) if info.nbytes else out
        for tile in self.tiles(name, _READ_BYTES):
            rows[tile.first_row : tile.first_row + len(tile.array)] = tile.array
        return out

    def read_quantized(self, name: str, *, threads: int | None = None) -> QuantizedArray:
        """Return a quantized weight of the source as codes."""
        return self.source.read_quantized(name, threads=threads)

    def tiles(self, name: str, max_bytes: int, rows: range | None = None) -> Iterator[Tile]:
        """Yield a tensor's rows in order in tiles of at most `max_bytes` (or one row); arrays are reused."""
        if name not in self.stored:
            yield from self.source.tiles(name, max_bytes, rows)
        elif self._tensors[name].nbytes:
            most = max(1, max_bytes // self._tensors[name].row_nbytes)
            tiles = _at_most(self.stored[name].tiles(self._dtype, max_bytes, self._threads), most)
            yield from tiles if rows is None or len(rows) == self._tensors[name].rows else _within(tiles, rows)

    def buffers(self, name: str) -> Sequence[Buffer]:
        """Return what reading a tensor holds besides its tile."""
        return self.stored[name].buffers(self._dtype) if name in self.stored else self.source.buffers(name)

    def close(self) -> None:
        """Close the source."""
        self.source.close()


def _at_most(tiles: Iterator[Tile], rows: int) -> Iterator[Tile]:
    """Yield tiles of at most so many rows: some layouts decode whole blocks of them."""
    for tile in tiles:
        for begin in range(0, len(tile.array), rows):
            yield Tile(tile.first_row + begin, tile.array[begin : begin + rows])


def _within(tiles: Iterator[Tile], rows: range) -> Iterator[Tile]:
    """Yield of tiles what lies in `rows`; those before are decoded and dropped."""
    for tile in tiles:
        first, stop = max(rows.start, tile.first_row), min(rows.stop, tile.first_row + len(tile.array))
        if first < stop:
            yield Tile(first, tile.array[first - tile.first_row : stop - tile.first_row])


class Decompressed(Dequantized):
    """A view of a source in which weights stored as bitmasks show whole, tile by tile as they are read.

    Every other tensor shows as it is, quantized ones too.

    Parameters
    ----------
    source : Source
        The model; closing the view closes it.
    threads : int, optional
        The result does not depend on it.
    """

    def __init__(self, source: Source, *, threads: int | None = None) -> None:
        masks = [layout for layout in LAYOUTS if layout.name == "sparse-bitmask"]
        super().__init__(source, threads=threads, layouts=masks)

    @property
    def masked(self) -> Mapping[str, str]:
        """The modules of the weights that are stored as bitmasks, by the name of the weight."""
        return {name: name.removesuffix(".weight") for name in self.stored}


class Widened(Dequantized):
    """A view of a source in which float8 tensors show as plain floats.

    Every other tensor shows as it is, quantized ones too. `config` loses what it says of such tensors. They show in
    the dtype of the model: the one of 16 bits that config.json or all its other floats have, else float32.

    Parameters
    ----------
    source : Source
        The model; closing the view closes it.
    threads : int, optional
        The result does not depend on it.
    but : sequence of str, optional
        Layouts that are left as they are.
    """

    def __init__(self, source: Source, *, threads: int | None = None, but: Sequence[str] = ()) -> None:
        float8 = [layout for layout in LAYOUTS if layout.name in ("float8", "float-quantized")]
        chosen = [layout for layout in float8 if layout.name not in but]
        super().__init__(source, dtype=_model_dtype(source), threads=threads, layouts=chosen)

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The source's own, without what it says of tensors that are shown as floats."""
        config = self.source.config
        if not self.stored or config is None:
            return config
        return {key: value for key, value in config.items() if key != "quantization_config"}

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the source, and in what the float8 tensors are read."""
        if not self.stored:
            return self.source.notes
        stored = "1 weight is" if len(self.stored) == 1 else f"{len(self.stored):,} weights are"
        return (*self.source.notes, f"{stored} stored as float8, and read as {DTYPES[self._dtype].word}")


def _model_dtype(source: Source) -> str:
    """Return the dtype that a model computes in."""
    config = source.config or {}
    said = config.get("dtype", config.get("torch_dtype"))
    if isinstance(said, str) and said.removeprefix("torch.") in STORED:
        return STORED[said.removeprefix("torch.")]
    ends = ("_scale", "_scale_inv")
    floats = {info.dtype for info in source.tensors.values() if info.dtype in FLOATS and not info.name.endswith(ends)}
    return floats.pop() if len(floats) == 1 and floats <= {"F16", "BF16"} else "F32"


class PartlyQuantized:
    """The tensors of a model of which some weights are quantized in a layout already, and stay as they are.

    Parameters
    ----------
    view : Dequantized
        The model, in which such weights show as they are stored.
    layout : Layout
        What others of it are to be quantized to.

    Attributes
    ----------
    view : Dequantized
    stored : mapping of str to StoredWeight
        The weights that are quantized, by their plain names.
    tensors : mapping of str to TensorInfo
        All tensors by their plain names.

    Raises
    ------
    UnsupportedError
        If config.json says of the model what could not be said of others, too.
    """

    def __init__(self, view: Dequantized, layout: WritableLayout) -> None:
        self.view = view
        known = layout.mark(view.tensors) is not None and layout.names_weights
        found = {weight.info("F32").name: weight for weight in layout.find(view.source)} if known else {}
        self.stored: Mapping[str, StoredWeight] = MappingProxyType(found)
        self._config = view.config or {}
        if found:
            self._config = _said_of_weights(self._config, str(view.path))
        first = {weight.parts[0]: weight.info("F32") for weight in found.values()}
        hidden = {part for weight in found.values() for part in weight.parts[1:]}
        infos = (first.get(name, info) for name, info in view.tensors.items() if name not in hidden)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({info.name: info for info in infos})

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json without what it says of the weights that are quantized; empty where there is none."""
        return self._config

    def parts(self, name: str) -> Sequence[str]:
        """Return the names of the view's tensors that stand for `name`."""
        return self.stored[name].parts if name in self.stored else [name]

    def check(self, chosen: Mapping[str, Any], method: str | None) -> None:
        """Refuse to quantize nothing more, or what can't be run.

        Raises
        ------
        UnsupportedError
            If no weight is chosen.
        OptionError
            If layers of the model are to be run.
        """
        if self.stored and not chosen:
            name = next(iter(self.stored))
            raise UnsupportedError(
                f"the model is quantized already (tensor {quote(name)}: {self.stored[name].words}), and no other "
                "weight was chosen: dequantize it first, or include others"
            )
        if self.stored and method is not None:
            raise OptionError(f"method must be left out for a model that is quantized in part, got {method!r}")


def _said_of_weights(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return config.json without what it says of weights; what it says of activations can't be said anew."""
    said = config.get("quantization_config") or {}
    groups = said.get("config_groups") if isinstance(said, Mapping) else None
    parts = [part for part in (said, *(groups or {}).values()) if isinstance(part, Mapping)]
    more = [key for key in _OF_ACTIVATIONS if any(part.get(key) for part in parts)]
    if more:
        raise UnsupportedError(
            f"{where}: the model is quantized already, and not in its weights alone (config.json has {more[0]}): "
            "dequantize it first"
        )
    return {key: value for key, value in config.items() if key != "quantization_config"}


def stored_nbytes(view: Source) -> dict[str, int]:
    """Return for each tensor of a model the bytes of all that stands for it."""
    names = view.tensors
    return {name: view.stored_nbytes(name) if isinstance(view, Dequantized) else names[name].nbytes for name in names}


def plain(source: Source, *, dtype: str = "F32", threads: int | None = None) -> Dequantized:
    """Return a view of a source in which all weights show as plain floats, however they are stored."""
    check_no_graph(source)
    return Dequantized(source, dtype=dtype, threads=threads)


def check_no_graph(source: Source) -> None:
    """Refuse ONNX models, in which nodes of the graph dequantize.

    Raises
    ------
    UnsupportedError
        If it is one.
    """
    if source.graph is not None:
        raise UnsupportedError(
            f"{source.path}: an ONNX model can't be dequantized: where it is quantized, its graph computes with those "
            "weights; go back to the model that it was made of"
        )
