"""The catalogue, the only list there is: every system, method, strategy, part, suite and so on, one file a family.

    methods()             all forgetting methods by slug, ours and those of other packages
    method("npo").load()  the class

The command line, the packages' public names, the documentation and the contract tests list from here. Verdicts are not in it: they
are read from the stored results. `records` says what a record holds, `reading` reads the files, `foreign` finds what other
packages add, `packages` gives a package its names.
"""

from __future__ import annotations

from typing import Any

from .reading import FILES, Kind, tables
from .records import (
    AttackRecord,
    BenchRecord,
    CacheRecord,
    DefenceRecord,
    MethodRecord,
    MetricRecord,
    NetRecord,
    PartRecord,
    PlanRecord,
    RecipeRecord,
    ShieldRecord,
    StrategyRecord,
    SuiteRecord,
    System,
    load_entry,
)

SYSTEM = Kind("system", System)
METHOD = Kind("method", MethodRecord, "unwrite.methods")
PLAN = Kind("plan", PlanRecord)
STRATEGY = Kind("strategy", StrategyRecord, "unwrite.strategies")
PART = Kind("part", PartRecord, "unwrite.parts")
SUITE = Kind("suite", SuiteRecord, "unwrite.suites")
METRIC = Kind("metric", MetricRecord)
ATTACK = Kind("attack", AttackRecord)
SHIELD = Kind("shield", ShieldRecord)
DEFENCE = Kind("defence", DefenceRecord)
CACHE = Kind("cache", CacheRecord)
NET = Kind("net", NetRecord)
RECIPE = Kind("recipe", RecipeRecord)
BENCH = Kind("bench", BenchRecord)
KINDS: tuple[Kind[Any], ...] = (
    SYSTEM, METHOD, PLAN, STRATEGY, PART, SUITE, METRIC, ATTACK, SHIELD, DEFENCE, CACHE, NET, RECIPE, BENCH,
)  # fmt: skip

systems, system = SYSTEM.all, SYSTEM.get
methods, method = METHOD.all, METHOD.get
plans, plan = PLAN.all, PLAN.get
strategies, strategy = STRATEGY.all, STRATEGY.get
parts, part = PART.all, PART.get
suites, suite = SUITE.all, SUITE.get
metrics, metric = METRIC.all, METRIC.get
attacks, attack = ATTACK.all, ATTACK.get
shields, shield = SHIELD.all, SHIELD.get
defences, defence = DEFENCE.all, DEFENCE.get
caches, cache = CACHE.all, CACHE.get
nets, net = NET.all, NET.get
recipes, recipe = RECIPE.all, RECIPE.get
benches, bench = BENCH.all, BENCH.get


def loader(name: str) -> Any | None:
    """The function that reads back a folder saved by a guard, or None if the catalogue names none."""
    for file in FILES:
        if name in (entries := tables(file).get("loader", {})):
            return load_entry(entries[name])
    return None
