"""An open study: what every page asks of it, at one setting."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from app.errors import Way, bad_request, damaged, not_found
from app.study import axes, queries
from app.study.axes import Setting
from app.study.files import Database, Entry, Reader, Row, StudyPendingError, find_entries
from app.study.records import Metric, Sae, Variant


@dataclass(frozen=True)
class Study:
    """A study that is open for one request: what every page needs of it."""

    entry: Entry
    reader: Reader
    row: Row
    asked: dict[str, str] = field(default_factory=dict)
    """Parameters of a setting, as the address has them."""
    pools: bool = False
    """Whether it shows all seeds together, where they are asked for."""

    @property
    def name(self) -> str:
        """Its name in the address."""
        return self.entry.name

    @property
    def full_name(self) -> str:
        """Its name with its setting, as the design of an experiment keeps it: that of single SAEs."""
        return axes.address(self.name, self.parameters | {axes.POOL.key: None})

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """What an address says of its setting."""
        return self.parameters_of(self.setting) if self.setting else {}

    def parameters_of(self, setting: Setting) -> dict[str, Any]:
        """What an address says of another setting of the study."""
        seeds = {axes.POOL.key: axes.ALL} if self.all_seeds else {}
        return axes.parameters(setting, axes.first(self.all_saes)) | seeds

    @cached_property
    def several_seeds(self) -> bool:
        """Whether there are SAEs that differ in seeds alone."""
        found = axes.pool(self.all_saes, self.setting) if self.setting else []
        return len({(sae.variant_seed, sae.sae_seed) for sae in found}) > 1

    @property
    def all_seeds(self) -> bool:
        """Whether all of several seeds are asked for."""
        return axes.POOL.key in self.asked and self.several_seeds

    @property
    def draws(self) -> int:
        """How many draws of the random variants are shown."""
        return len({sae.variant_seed for sae in self.saes})

    @property
    def trainings(self) -> int:
        """How many trainings of the SAEs are shown."""
        return len({sae.sae_seed for sae in self.saes})

    @property
    def pooled(self) -> bool:
        """Whether several SAEs stand in one place."""
        return any(len(saes) > 1 for saes in self.places.values())

    def address(self, rest: str = "", query: Mapping[str, Any] | None = None) -> str:
        """The address of one of its pages at its setting, below the server's base path."""
        return axes.address(axes.study_path(self.name) + rest, {**self.parameters, **(query or {})})

    def at(self, setting: Setting) -> "Study":
        """The same study at another setting."""
        asked = self.asked | {key: str(value) for key, value in axes.told(setting).items()}
        return Study(self.entry, self.reader, self.row, asked, self.pools)

    @cached_property
    def setting(self) -> Setting | None:
        """Which SAEs are shown; None while there is no SAE. Raises a 404 for a setting that is not there."""
        return axes.read(self.asked, self.all_saes, self.entry.name) if self.all_saes else None

    @cached_property
    def all_saes(self) -> list[Sae]:
        """The SAEs of all settings that are there."""
        return queries.saes(self.reader)

    @cached_property
    def variants(self) -> list[Variant]:
        """All variants of the study, whether their SAEs are there yet or not."""
        return queries.variants(self.reader)

    @cached_property
    def saes(self) -> list[Sae]:
        """The SAEs that are shown, by variant and layer: one in each place, or those of all seeds."""
        if self.setting is None:
            return []
        chosen = axes.pool if self.pools and self.all_seeds else axes.members
        return chosen(self.all_saes, self.setting)

    @cached_property
    def numbers(self) -> list[int]:
        """The numbers of the setting's SAEs."""
        return [sae.sae for sae in self.saes]

    @cached_property
    def metrics(self) -> list[Metric]:
        """The metrics of SAEs, in order."""
        return [metric for metric in queries.metrics(self.reader) if metric.level == "sae"]

    @cached_property
    def statistics(self) -> list[Metric]:
        """The statistics of latents, in order: those that are columns of the file."""
        columns = queries.latent_columns(self.reader)
        return [m for m in queries.metrics(self.reader) if m.level == "latent" and m.metric in columns]

    @property
    def headline(self) -> str:
        """The statistic that pages open on: the study's first score, the density where it has none."""
        names = [metric.metric for metric in self.statistics if metric.is_score]
        return names[0] if names else "density"

    @cached_property
    def layers(self) -> list[int]:
        """The layers that have an SAE in this setting."""
        return sorted({sae.layer for sae in self.saes})

    @cached_property
    def places(self) -> dict[tuple[str, int], list[Sae]]:
        """By variant and layer, in that order, the SAEs that are shown."""
        found: dict[tuple[str, int], list[Sae]] = {}
        for sae in self.saes:
            found.setdefault((sae.variant, sae.layer), []).append(sae)
        return found

    def variant(self, name: str) -> Variant:
        """A variant by name; raises a 404."""
        for variant in self.variants:
            if variant.variant == name:
                return variant
        raise not_found("variant", name, [v.variant for v in self.variants])

    def sae(self, variant: str, layer: int) -> Sae:
        """The SAE of a variant at a layer; raises a 404."""
        known = self.variant(variant)
        for sae in self.saes:
            if (sae.variant, sae.layer) == (known.variant, layer):
                return sae
        ways = [Way("Overview", self.address())]
        raise not_found(f"SAE of variant “{known.label}” at layer", layer, self.layers_of(variant), ways)

    def layers_of(self, variant: str) -> list[int]:
        """The layers at which a variant has an SAE."""
        return sorted({sae.layer for sae in self.saes if sae.variant == variant})

    def statistic(self, name: str, parameter: str = "sort") -> Metric:
        """A statistic by name; raises a 400 that names the query parameter."""
        for metric in self.statistics:
            if metric.metric == name:
                return metric
        raise bad_request(parameter, name, [metric.metric for metric in self.statistics])


class Studies:
    """All studies of one server."""

    def __init__(self, paths: Iterable[Path], query_seconds: float) -> None:
        self.paths = tuple(path.absolute() for path in paths)
        self.database = Database(query_seconds)

    def entries(self) -> list[Entry]:
        """What there is now."""
        return find_entries(self.paths)

    def entry(self, name: str) -> Entry:
        """A study by its name; raises a 404."""
        entries = {entry.name: entry for entry in self.entries()}
        if name not in entries:
            raise not_found("study", name, entries, [Way("All studies", "/")])
        return entries[name]

    def split(self, text: str) -> tuple[str, dict[str, str]]:
        """The name and the setting that are in a full name: see `axes.split`."""
        return axes.split(text, [entry.name for entry in self.entries()])

    @contextmanager
    def open(self, name: str, /, **asked: str) -> Iterator[Study]:
        """Open a study at a setting, for one request.

        Raises StudyPendingError while it has no file, or a PageError.
        """
        with self.reading(self.entry(name), **asked) as study:
            yield study

    @contextmanager
    def reading(self, entry: Entry, /, **asked: str) -> Iterator[Study]:
        """Open what `entries` found."""
        if entry.path is None:
            raise StudyPendingError(entry)
        with self.database.reading(entry.path) as reader:
            row = queries.study(reader)
            if row is None:
                raise damaged(entry.path.name, "its table `study` is empty.")
            yield Study(entry, reader, row, asked)
