"""/adapters: what was trained, and the PEFT folders themselves."""

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from loramem.errors import NotFound
from loramem.tables import Adapter
from server.api.common import After, Limit, NamespaceFilter, TheGateway, adapter_out, page, problems
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
    wanted = [] if namespace is None else [Adapter.namespace == namespace]
    wanted += [] if document_id is None else [Adapter.document_id == document_id]
    with gateway.database.read() as session:
        rows, cursor = page(session, Adapter, wanted, limit, after)
    return AdapterPage(data=[adapter_out(row) for row in rows], has_more=cursor is not None, next_cursor=cursor)


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
