"""Adapters: merging, the pool that they are merged from, how the router chooses among them, and what is stored."""

from typing import Any

from deploy.grafana.panels import Query, Row, board, heat, lines
from deploy.grafana.promql import buckets, quantile, rate, share


def adapters() -> dict[str, Any]:
    about = "Merges and their cache, the pool of adapters by tier, the router's choices, and the adapters stored."
    return board("adapters", about, [_merges(), _pool(), _routing(), _selecting(), _stored()])


def _merges() -> Row:
    merges, seconds = "loramem_merges_total", "loramem_merge_duration_seconds"
    return Row(
        "Merges",
        [
            lines(
                "Merges by cache",
                "Adapters that questions asked for, merged or single: a `hit` was in the engine already.",
                "ops",
                Query(rate(merges, by="cache"), "{{cache}}"),
                stacked=True,
            ),
            lines(
                "Merges by method",
                "`single` is one adapter, unmerged; it needs a place in the engine all the same.",
                "ops",
                Query(rate(merges, by="method"), "{{method}}"),
                stacked=True,
            ),
            lines(
                "Cache misses",
                "Share of adapters that had to be merged or loaded first. An alert warns above half.",
                "percentunit",
                Query(share(merges, 'cache="miss"', by="method"), "{{method}}"),
                most=1,
                limits=(0.5,),
            ),
            lines(
                "Merge duration",
                "From asking for the adapter to its being in the engine, on a miss.",
                "s",
                *(
                    Query(quantile(q, seconds, by="method"), f"{{{{method}}}}, {name}")
                    for q, name in ((0.5, "p50"), (0.95, "p95"))
                ),
                width=12,
            ),
            heat("Merge duration, distribution", "How many merges took how long, on a miss.", "s", buckets(seconds)),
        ],
    )


def _pool() -> Row:
    asked = "loramem_adapter_pool_requests_total"
    return Row(
        "Pool of adapters that merges are made from",
        [
            lines(
                "Bytes by tier",
                "`disk`: files that are mapped; `host`: trimmed and ready to be merged; `device`: the same on the GPU. "
                "Empty until a question needs an adapter.",
                "bytes",
                Query("sum by (tier) (loramem_adapter_pool_bytes)", "{{tier}}"),
                width=6,
            ),
            lines(
                "Adapters by tier",
                "Adapters that are held.",
                "none",
                Query("sum by (tier) (loramem_adapter_pool_entries)", "{{tier}}"),
                width=6,
            ),
            lines(
                "Pool hits by tier",
                "Share of lookups that found their adapter there.",
                "percentunit",
                Query(share(asked, 'result="hit"', by="tier"), "{{tier}}"),
                width=6,
                most=1,
            ),
            lines(
                "Evictions by tier",
                "Adapters that made room for others, a second. Many of them: the pool is too small for what is asked.",
                "ops",
                Query(rate("loramem_adapter_pool_evictions_total", by="tier"), "{{tier}}"),
                width=6,
            ),
        ],
    )


def _routing() -> Row:
    score, margin = "loramem_route_score", "loramem_route_margin"
    return Row(
        "Routing",
        [
            lines(
                "Route confidence",
                "How sure the router was: `confident` takes one adapter, `unsure` several, `weak` found little "
                "that fits, `untrained` found text without adapters, `none` found nothing.",
                "ops",
                Query(rate("loramem_route_choices_total", by="confidence"), "{{confidence}}"),
                stacked=True,
            ),
            lines(
                "Route score",
                "Of the best adapter, 0 to 1. A fall: questions are about what is not stored.",
                "none",
                *(Query(quantile(q, score), f"p{q * 100:.0f}") for q in (0.05, 0.5, 0.95)),
                most=1,
            ),
            lines(
                "Route margin",
                "Lead of the best adapter over the next, as a share of its score. Small ones make it take several. "
                "1 where it is the only one.",
                "none",
                *(Query(quantile(q, margin), f"p{q * 100:.0f}") for q in (0.05, 0.5, 0.95)),
                most=1,
            ),
            heat("Route score, distribution", "How many questions had which best score.", "none", buckets(score)),
            heat("Route margin, distribution", "How many questions had which lead.", "none", buckets(margin)),
        ],
    )


def _selecting() -> Row:
    selections = "loramem_selections_total"
    return Row(
        "Selecting",
        [
            lines(
                "Selections by winner",
                "Answers chosen among several adapters: `first` is the one that the router thought best.",
                "ops",
                Query(rate(selections, by="winner"), "{{winner}}"),
                width=12,
                stacked=True,
            ),
            lines(
                "Selections that overruled the router",
                "Share that another than the router's first won. Near 0, asking several is hardly worth its time.",
                "percentunit",
                Query(share(selections, 'winner="other"'), "other"),
                width=12,
                most=1,
            ),
        ],
    )


def _stored() -> Row:
    return Row(
        "Stored",
        [
            lines(
                "Adapters by state",
                "`live` ones answer; `retired` ones wait for their files to be removed.",
                "none",
                Query("max by (state) (loramem_adapters)", "{{state}}"),
                width=12,
            ),
            lines(
                "Bytes of adapters",
                "On disk, as the database knows them.",
                "bytes",
                Query('max(loramem_store_bytes{kind="adapters"})', "adapters"),
                width=12,
            ),
        ],
    )
