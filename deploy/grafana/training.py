"""The write side: how long jobs wait, how they end, where a worker's time goes, and whether training learns."""

from typing import Any

from deploy.grafana.panels import FAULTS, TOKENS_PER_SECOND, Query, Row, board, heat, lines, number
from deploy.grafana.promql import RANGE, buckets, growth, increase, quantile, rate, selected

DURATION = "loramem_job_duration_seconds"
HOUR = "1h"
"""Jobs end too rarely for the few minutes that other rates are made of."""


def training() -> dict[str, Any]:
    about = "The queue of jobs, their ends and durations by phase, leases, and training itself."
    return board("training", about, [_state(), _queue(), _jobs(), _learning(), _worker()])


def _state() -> Row:
    ended = increase(f"{DURATION}_count", 'outcome=~"succeeded|failed|cancelled"', over=RANGE)
    died = growth("loramem_jobs", 'state="dead"', over=RANGE)
    succeeded = increase(f"{DURATION}_count", 'outcome="succeeded"', over=RANGE)
    return Row(
        "State",
        [
            number("Queued", "Jobs that wait now.", "none", Query('max(loramem_jobs{state="queued"})', "queued")),
            number("Running", "Jobs that run now.", "none", Query('max(loramem_jobs{state="running"})', "running")),
            number(
                "Busy workers",
                "Workers that have a job now.",
                "none",
                Query("sum(loramem_worker_busy)", "busy"),
                no_value="no worker",
            ),
            number(
                "Succeeded",
                "Share of the jobs that ended in the time shown, well. Attempts that a job goes on after do not count; "
                "what was cancelled counts against it, and so do jobs that died, as the database holds them, since a "
                "worker that is killed tells of no end.",
                "percentunit",
                Query(f"({succeeded} or vector(0)) / (({ended} or vector(0)) + {died} > 0)", "succeeded"),
                no_value="none known",
            ),
            number(
                "Leases lost, in all",
                "In the time shown: jobs that another worker took over, because theirs did not renew its lease.",
                "none",
                Query(increase("loramem_job_leases_lost_total", over=RANGE), "lost"),
                steps=FAULTS,
                no_value="no worker",
            ),
            number(
                "Dead",
                "Jobs that have used up their attempts; their documents have no adapters of that revision.",
                "none",
                Query('max(loramem_jobs{state="dead"})', "dead"),
                steps=FAULTS,
            ),
        ],
    )


def _queue() -> Row:
    return Row(
        "Queue",
        [
            lines(
                "Queue depth",
                "Jobs that wait and that run, as the database holds them.",
                "none",
                *(Query(f'max(loramem_jobs{{state="{state}"}})', state) for state in ("queued", "running")),
            ),
            lines(
                "Oldest queued job",
                "Its age. An alert fires above twice the p95 of a document's job, and never below an hour; while all "
                "workers are busy, never below a day.",
                "s",
                Query("max(loramem_job_queue_oldest_age_seconds)", "oldest"),
                Query("clamp_min(2 * loramem:job_duration_seconds:p95_1d, 3600)", "alert above"),
            ),
            lines(
                "Wait before a worker claims",
                "From being due to being claimed, of the hour before.",
                "s",
                *(Query(quantile(q, "loramem_job_wait_seconds", over=HOUR), f"p{q * 100:.0f}") for q in (0.5, 0.95)),
            ),
        ],
    )


def _jobs() -> Row:
    return Row(
        "Jobs",
        [
            lines(
                "Ends of attempts",
                "In the hour before. What is `postponed`, `made_way` or `handed_back` goes on later; `error` is tried "
                "again.",
                "none",
                Query(increase("loramem_job_attempts_total", by="outcome", over=HOUR), "{{outcome}}"),
                stacked=True,
            ),
            lines(
                "Job duration",
                "Of jobs that succeeded in the hour before, by kind.",
                "s",
                *(
                    Query(quantile(q, DURATION, 'outcome="succeeded"', "kind", HOUR), f"{{{{kind}}}}, p{q * 100:.0f}")
                    for q in (0.5, 0.95)
                ),
            ),
            lines(
                "Jobs by state",
                "That ended for good, as the database holds them.",
                "none",
                *(
                    Query(f'max(loramem_jobs{{state="{state}"}})', state)
                    for state in ("succeeded", "failed", "cancelled", "dead")
                ),
            ),
            lines(
                "Where workers spend their time",
                "Seconds of each phase that ended in the hour before, a second: the sum is how many workers were busy.",
                "none",
                Query(rate("loramem_job_phase_seconds_sum", by="phase", over=HOUR), "{{phase}}"),
                stacked=True,
            ),
            lines(
                "Phases, p95",
                "A phase from its beginning to the next one's, of the hour before.",
                "s",
                Query(quantile(0.95, "loramem_job_phase_seconds", by="phase", over=HOUR), "{{phase}}"),
            ),
            lines(
                "Leases lost",
                "Jobs that another worker took over, in the hour before. A worker that is frozen loses its lease.",
                "none",
                Query(increase("loramem_job_leases_lost_total", by="instance", over=HOUR), "{{instance}}"),
            ),
        ],
    )


def _learning() -> Row:
    recall = "loramem_exam_recall"
    return Row(
        "Learning",
        [
            lines(
                "Trained tokens",
                "Tokens that adapters learnt from, a second, in the hour before; counted when an adapter is examined.",
                TOKENS_PER_SECOND,
                Query(rate("loramem_train_tokens_total", by="instance", over=HOUR), "{{instance}}"),
            ),
            lines(
                "Time of a training step",
                "One step of all adapters that are trained side by side.",
                "s",
                *(Query(quantile(q, "loramem_train_step_seconds"), f"p{q * 100:.0f}") for q in (0.5, 0.95)),
            ),
            lines(
                "Loss",
                "Of the last training step, nats per token. It begins anew with every group of chunks.",
                "none",
                Query("loramem_train_loss", "{{instance}}"),
            ),
            lines(
                "Exam recall",
                "Share of held-out questions that a new adapter answers, of those examined in the hour before.",
                "percentunit",
                *(Query(quantile(q, recall, over=HOUR), f"p{q * 100:.0f}") for q in (0.1, 0.5)),
                width=12,
                most=1,
            ),
            heat("Exam recall, distribution", "How many adapters had which recall.", "percentunit", buckets(recall)),
        ],
    )


def _worker() -> Row:
    trainer = 'job="trainer"'
    return Row(
        "Worker",
        [
            lines(
                "Processor",
                "Cores that a worker uses.",
                "none",
                Query(rate("process_cpu_seconds_total", trainer, "instance"), "{{instance}}"),
            ),
            lines(
                "Memory",
                "Resident memory of a worker.",
                "bytes",
                Query(selected("process_resident_memory_bytes", trainer), "{{instance}}"),
            ),
            lines(
                "GPU memory",
                "What a worker's tensors take on its GPU. Without a GPU there is none.",
                "bytes",
                Query("loramem_gpu_memory_bytes", "{{instance}}"),
            ),
        ],
    )
