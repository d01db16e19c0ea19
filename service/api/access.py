"""Which scope of a key each operation asks for: the one place that says so."""

from __future__ import annotations

from typing import Final

from service.contract.errors import Forbidden
from service.tenants.scopes import SCOPES, Scope

#: By operation id. Every operation under `/v1` stands here, a test holds it to that; those elsewhere ask for no key.
SCOPE_OF: Final[dict[str, Scope]] = {
    "createGeneration": "generate",
    "createGenerations": "generate",
    "rerunGeneration": "generate",
    "validateGeneration": "generate",
    "cancelGeneration": "generate",
    "eraseGeneration": "generate",
    "createUpload": "generate",
    "eraseUpload": "generate",
    "getUpload": "read",
    "listGenerations": "read",
    "getGeneration": "read",
    "followGeneration": "read",
    "getImage": "read",
    "getPreview": "read",
    "listModels": "read",
    "getModel": "read",
    "listSchedulers": "read",
    "getUsage": "read",
    "getWebhookSecret": "webhooks",
    "listWebhookSecrets": "webhooks",
    "rotateWebhookSecret": "webhooks",
    "listWebhookEndpoints": "webhooks",
    "getWebhookEndpoint": "webhooks",
    "switchWebhookEndpoint": "webhooks",
    "listWebhookDeliveries": "webhooks",
    "getWebhookDelivery": "webhooks",
    "redeliverWebhook": "webhooks",
}


class MissingScope(Forbidden):
    """This key may not do that."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(f"This key may not do that: it has not the scope `{scope}` ({SCOPES[scope]}).")
        self.scope = scope
