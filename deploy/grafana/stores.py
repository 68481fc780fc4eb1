"""What is kept, and what keeps it: database, index, contents, disk, and the processes themselves."""

from typing import Any

from deploy.grafana.panels import BAD, GOOD, NEUTRAL, WARNING, Query, Row, board, lines, number
from deploy.grafana.promql import quantile, rate, selected

BOTH = 'job=~"gateway|trainer"'
DAY_S = 86400


def stores() -> dict[str, Any]:
    about = "The database's transactions, the index in memory, what is stored, the disk and when it is full, processes."
    return board("stores", about, [_database(), _index(), _contents(), _disk(), _processes()])


def _database() -> Row:
    seconds = "loramem_database_transaction_seconds"
    return Row(
        "Database",
        [
            lines(
                "Transaction time, p50",
                "From asking for a transaction to its end, waiting for other writers included.",
                "s",
                Query(quantile(0.5, seconds, by="job, kind"), "{{job}}, {{kind}}"),
            ),
            lines(
                "Transaction time, p95",
                "SQLite has one writer at a time: where this grows and the p50 does not, writers wait for each other.",
                "s",
                Query(quantile(0.95, seconds, by="job, kind"), "{{job}}, {{kind}}"),
            ),
            lines(
                "Transactions",
                "That ended, a second.",
                "ops",
                Query(rate(f"{seconds}_count", by="job, kind"), "{{job}}, {{kind}}"),
            ),
        ],
    )


def _index() -> Row:
    return Row(
        "Index",
        [
            lines(
                "Vectors in memory",
                "Of namespaces that were asked since the gateway's start: passages of texts, and learnt questions.",
                "none",
                Query("sum by (instance, kind) (loramem_index_vectors)", "{{instance}}, {{kind}}"),
            ),
            lines(
                "Index lag",
                "Changes of the database that the index in memory does not have yet. Above 0 for a moment after an "
                "upload; for long, it cannot be brought up to date.",
                "none",
                Query("max by (instance) (loramem_index_lag)", "{{instance}}"),
            ),
            lines(
                "Database reachable",
                "1 when it answered the last scrape; what it knows is missing from the other panels meanwhile.",
                "none",
                Query("min by (instance) (loramem_database_up)", "{{instance}}"),
                most=1,
            ),
        ],
    )


def _contents() -> Row:
    return Row(
        "Contents",
        [
            lines(
                "Documents by state",
                "`pending`: nothing yet; `indexed`: rag and icl answer; `live`: every mode does.",
                "none",
                Query("max by (state) (loramem_documents)", "{{state}}"),
                stacked=True,
            ),
            lines(
                "Adapters by state",
                "`live` ones answer; `retired` ones wait for their files to be removed.",
                "none",
                Query("max by (state) (loramem_adapters)", "{{state}}"),
                stacked=True,
            ),
            lines(
                "Bytes by kind",
                "`cache` can be made anew: base model, index snapshots. `jobs` is kept for a job's next attempt.",
                "bytes",
                Query("max by (kind) (loramem_store_bytes)", "{{kind}}"),
                stacked=True,
            ),
        ],
    )


def _disk() -> Row:
    free, size = "loramem_disk_free_bytes", "loramem_disk_size_bytes"
    return Row(
        "Disk",
        [
            number(
                "Disk free",
                "Share of the file system of the data folder. An alert fires below 10 %.",
                "percentunit",
                Query(f"min({free} / {size})", "free"),
                steps=((None, BAD), (0.1, WARNING), (0.2, GOOD)),
                width=12,
            ),
            number(
                "Days to full",
                "If it goes on filling as in the last six hours. No number while it does not, or no gateway answers.",
                "d",
                Query(f"min({free} / -(deriv({free}[6h]) < 0)) / {DAY_S}", "to full"),
                steps=((None, NEUTRAL), (0, BAD), (1, WARNING), (7, GOOD)),
                width=12,
                no_value="not filling",
            ),
            lines(
                "Bytes free",
                "Of the file system of the data folder, and its size.",
                "bytes",
                Query(free, "{{instance}}, free"),
                Query(size, "{{instance}}, size"),
                width=12,
            ),
            lines(
                "Growth of what is stored",
                "Change of the bytes of each kind in six hours.",
                "bytes",
                Query("max by (kind) (delta(loramem_store_bytes[6h]))", "{{kind}}"),
                width=12,
            ),
        ],
    )


def _processes() -> Row:
    return Row(
        "Processes",
        [
            lines(
                "Processor",
                "Cores that a process uses; the engine's own processes are not counted.",
                "none",
                Query(rate("process_cpu_seconds_total", BOTH, "job, instance"), "{{job}} {{instance}}"),
            ),
            lines(
                "Memory",
                "Resident memory; the engine's own processes are not counted.",
                "bytes",
                Query(selected("process_resident_memory_bytes", BOTH), "{{job}} {{instance}}"),
            ),
            lines(
                "Open files",
                "Share of what the process may open. A steady rise is a leak.",
                "percentunit",
                Query(f"process_open_fds{{{BOTH}}} / process_max_fds{{{BOTH}}}", "{{job}} {{instance}}"),
            ),
        ],
    )
