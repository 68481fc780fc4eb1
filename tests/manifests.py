"""An adapter's manifest where a test cares for few of its fields."""

from loramem.records import AdapterManifest, ExamResult


def manifest(
    adapter_id: str, fingerprint: str, *, rank: int, exam: ExamResult, training: dict[str, float | int | str | bool]
) -> AdapterManifest:
    """Of the first chunk of a document; `sha256` is still to come."""
    return AdapterManifest(
        adapter_id=adapter_id,
        document_id="doc_1",
        revision=1,
        chunk=0,
        base_model="tiny",
        fingerprint=fingerprint,
        rank=rank,
        alpha=2 * rank,
        sha256={},
        exam=exam,
        training=training,
    )
