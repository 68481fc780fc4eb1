"""/adapters: what was trained, and the PEFT folders themselves."""

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from loramem.errors import NotFound
from loramem.tables import Adapter
from server.api.common import After, Limit, NamespaceFilter, TheGateway, adapter_out, problems
from server.api.fields import Text
from server.api.schemas import AdapterOut, AdapterPage
from server.gateway import Gateway

router = APIRouter(prefix="/adapters", tags=["adapters"])


@router.get("", responses=problems())
def list_adapters(
    gateway: TheGateway,
    namespace: NamespaceFilter = None,
    document_id: Text | None = None,
    limit: Limit = 50,
    after: After = None,
) -> AdapterPage:
    """Newest last, in pages; retired ones are listed until their files are gone."""
    wanted = select(Adapter).order_by(Adapter.id).limit(limit + 1)
    if namespace is not None:
        wanted = wanted.where(Adapter.namespace == namespace)
    if document_id is not None:
        wanted = wanted.where(Adapter.document_id == document_id)
    if after is not None:
        wanted = wanted.where(Adapter.id > after)
    with gateway.database.read() as session:
        rows = [adapter_out(row) for row in session.scalars(wanted)]
    more = len(rows) > limit
    return AdapterPage(data=rows[:limit], has_more=more, next_cursor=rows[limit - 1].id if more else None)


@router.get("/{adapter_id}", responses=problems(404))
def read_adapter(adapter_id: Text, gateway: TheGateway) -> AdapterOut:
    return adapter_out(_find(gateway, adapter_id))


@router.get(
    "/{adapter_id}/download",
    response_class=StreamingResponse,
    responses={**problems(404, 500), 200: {"content": {"application/x-tar": {}}}},
)
def download_adapter(adapter_id: Text, gateway: TheGateway) -> StreamingResponse:
    """The PEFT folder as a tar archive, with `loramem.json`; it loads in PEFT and in any vLLM."""
    _find(gateway, adapter_id)
    gateway.store.verify(adapter_id)
    disposition = f'attachment; filename="{adapter_id}.tar"'
    return StreamingResponse(
        gateway.store.archive(adapter_id), media_type="application/x-tar", headers={"Content-Disposition": disposition}
    )


def _find(gateway: Gateway, adapter_id: str) -> Adapter:
    with gateway.database.read() as session:
        adapter = session.get(Adapter, adapter_id)
    if adapter is None:
        raise NotFound("adapter", adapter_id)
    return adapter
